//! The templates of chats that published language models were trained on. All are turns of
//! `<|im_start|>role\ntext<|im_end|>`; they differ in the system's words and in what stands between turns.

use serde::{Deserialize, Serialize};

/// A chat template. An image stands in the user's first turn as `<img>`, its tokens, `</img>` and a line break, before
/// the question. Supervised are each answer and the `<|im_end|>` that ends it (as in InternVL's training code).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatTemplate {
    /// Qwen2, and the base models of Qwen2.5, as their `chat_template`.
    #[serde(rename = "qwen2")]
    Qwen2,
    /// Qwen2.5, as its `chat_template`.
    #[serde(rename = "qwen2.5")]
    Qwen25,
    /// Qwen3, as its `chat_template` without reasoning: no system turn, and an empty `<think>` before the last answer.
    #[serde(rename = "qwen3")]
    Qwen3,
    /// Turns alone, without a system turn of its own, as many models have it that were tuned on conversations.
    #[serde(rename = "chatml")]
    ChatMl,
    /// InternVL 2 on Qwen2: `Hermes-2`, with its own system words and no line break between turns.
    #[serde(rename = "hermes-2")]
    Hermes2,
    /// InternVL 2.5 and 3, and SAIL-VL before its second version: `internvl2_5`.
    #[serde(rename = "internvl2.5")]
    InternVl25,
    /// SAIL-VL's `sailvl-chat`: no line break between turns.
    #[serde(rename = "sailvl")]
    SailVl,
}

impl ChatTemplate {
    /// All templates.
    pub const ALL: [ChatTemplate; 7] = [
        ChatTemplate::Qwen2,
        ChatTemplate::Qwen25,
        ChatTemplate::Qwen3,
        ChatTemplate::ChatMl,
        ChatTemplate::Hermes2,
        ChatTemplate::InternVl25,
        ChatTemplate::SailVl,
    ];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            ChatTemplate::Qwen2 => "qwen2",
            ChatTemplate::Qwen25 => "qwen2.5",
            ChatTemplate::Qwen3 => "qwen3",
            ChatTemplate::ChatMl => "chatml",
            ChatTemplate::Hermes2 => "hermes-2",
            ChatTemplate::InternVl25 => "internvl2.5",
            ChatTemplate::SailVl => "sailvl",
        }
    }

    /// The name in a whole model's `config.json`, its key `template`: InternVL's own, where it has one.
    pub fn internvl_name(self) -> &'static str {
        match self {
            ChatTemplate::Hermes2 => "Hermes-2",
            ChatTemplate::InternVl25 => "internvl2_5",
            ChatTemplate::SailVl => "sailvl-chat",
            other => other.name(),
        }
    }

    /// The template that a whole model's `config.json` names; nothing for a name that none has.
    pub fn from_internvl_name(name: &str) -> Option<ChatTemplate> {
        let mut all = ChatTemplate::ALL.into_iter();
        all.find(|template| template.internvl_name() == name)
    }

    /// What the system says first; nothing where there is no such turn.
    pub(super) fn system(self) -> Option<&'static str> {
        match self {
            ChatTemplate::Qwen2 => Some("You are a helpful assistant."),
            ChatTemplate::Qwen25 => {
                Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
            }
            ChatTemplate::Qwen3 | ChatTemplate::ChatMl | ChatTemplate::SailVl => None,
            ChatTemplate::Hermes2 => Some(
                "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
            ),
            ChatTemplate::InternVl25 => Some(
                "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
            ),
        }
    }

    /// What follows `<|im_end|>`.
    pub(super) fn between(self) -> &'static str {
        match self {
            ChatTemplate::Hermes2 | ChatTemplate::SailVl => "",
            _ => "\n",
        }
    }

    /// What opens the last answer of a conversation, before what is supervised.
    pub(super) fn before_last_answer(self) -> &'static str {
        match self {
            ChatTemplate::Qwen3 => "<think>\n\n</think>\n\n",
            _ => "",
        }
    }
}
