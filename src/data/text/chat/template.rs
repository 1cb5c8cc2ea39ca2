//! The templates of chats that published language models were trained on. All are turns between control tokens, most of them
//! `<|im_start|>role\ntext<|im_end|>`; they differ in these tokens, in the system's words and in what stands between turns.

use serde::{Deserialize, Serialize};

/// A chat template. An image stands in the user's first turn as `<img>`, its tokens, `</img>` and a line break, before
/// the question. Supervised are each answer and the control token that ends it (as in InternVL's training code).
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
    /// SmolLM2, as its `chat_template`.
    #[serde(rename = "smollm2")]
    SmolLm2,
    /// Llama 3, as its `chat_template`: headers of their own, and texts without the white space around them.
    #[serde(rename = "llama3")]
    Llama3,
    /// Llama 3.1 and 3.2, as their `chat_template` without tools: Llama 3's turns, and a system turn that begins with two dates, of
    /// which the day's is the one that stands in the template.
    #[serde(rename = "llama3.1")]
    Llama31,
}

/// The control tokens around turns, and what stands between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Opens a sequence, where something does.
    pub begin: Option<&'static str>,
    /// Opens a turn, before its role.
    pub open: &'static str,
    /// Ends the role, where a control token does.
    pub role_end: Option<&'static str>,
    /// What parts the role from the text.
    pub gap: &'static str,
    /// Ends a turn.
    pub close: &'static str,
    /// Ends a text that is no conversation, where the tokenizer has it.
    pub text_end: &'static str,
    /// Whether white space around a turn's text is left out.
    pub trims: bool,
}

impl Frame {
    /// `text` as it stands in a turn.
    pub fn trimmed(self, text: &str) -> &str {
        if self.trims { text.trim() } else { text }
    }
}

const CHATML: Frame = Frame {
    begin: None,
    open: "<|im_start|>",
    role_end: None,
    gap: "\n",
    close: "<|im_end|>",
    text_end: "<|endoftext|>",
    trims: false,
};

const LLAMA3: Frame = Frame {
    begin: Some("<|begin_of_text|>"),
    open: "<|start_header_id|>",
    role_end: Some("<|end_header_id|>"),
    gap: "\n\n",
    close: "<|eot_id|>",
    text_end: "<|end_of_text|>",
    trims: true,
};

impl ChatTemplate {
    /// All templates.
    pub const ALL: [ChatTemplate; 10] = [
        ChatTemplate::Qwen2,
        ChatTemplate::Qwen25,
        ChatTemplate::Qwen3,
        ChatTemplate::ChatMl,
        ChatTemplate::Hermes2,
        ChatTemplate::InternVl25,
        ChatTemplate::SailVl,
        ChatTemplate::SmolLm2,
        ChatTemplate::Llama3,
        ChatTemplate::Llama31,
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
            ChatTemplate::SmolLm2 => "smollm2",
            ChatTemplate::Llama3 => "llama3",
            ChatTemplate::Llama31 => "llama3.1",
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

    /// The control tokens around turns.
    pub(super) fn frame(self) -> Frame {
        match self {
            ChatTemplate::Llama3 | ChatTemplate::Llama31 => LLAMA3,
            _ => CHATML,
        }
    }

    /// What the system says first where a conversation has no words of its own for it; nothing where there is no such turn.
    pub(super) fn system(self) -> Option<&'static str> {
        match self {
            ChatTemplate::Qwen2 => Some("You are a helpful assistant."),
            ChatTemplate::Qwen25 => {
                Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
            }
            ChatTemplate::Qwen3
            | ChatTemplate::ChatMl
            | ChatTemplate::SailVl
            | ChatTemplate::Llama3 => None,
            ChatTemplate::SmolLm2 => {
                Some("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
            }
            // What stands before its own words, which it has none of.
            ChatTemplate::Llama31 => Some(""),
            ChatTemplate::Hermes2 => Some(
                "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
            ),
            ChatTemplate::InternVl25 => Some(
                "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
            ),
        }
    }

    /// What stands before the system's words, its own or a conversation's.
    pub(super) fn before_system(self) -> &'static str {
        match self {
            ChatTemplate::Llama31 => {
                "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
            }
            _ => "",
        }
    }

    /// What follows the token that ends a turn.
    pub(super) fn between(self) -> &'static str {
        match self {
            ChatTemplate::Hermes2
            | ChatTemplate::SailVl
            | ChatTemplate::Llama3
            | ChatTemplate::Llama31 => "",
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
