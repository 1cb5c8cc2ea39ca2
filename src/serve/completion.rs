//! An answer in OpenAI's form, whole or in pieces.

use serde_json::{Value as Json, json};

use super::engine::Ended;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    id: String,
    model: String,
    created: u64,
    prompt_tokens: usize,
    /// The text so far, of an answer that is sent whole.
    pub text: String,
}

impl Completion {
    pub fn new(model: String, created: u64, prompt_tokens: usize) -> Completion {
        use std::hash::{BuildHasher, RandomState};
        let id = format!("chatcmpl-{:016x}", RandomState::new().hash_one(created));
        Completion {
            id,
            model,
            created,
            prompt_tokens,
            text: String::new(),
        }
    }

    fn usage(&self, ended: Ended) -> Json {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": ended.tokens,
            "total_tokens": self.prompt_tokens + ended.tokens,
            "prompt_tokens_details": {"cached_tokens": ended.reused},
        })
    }

    pub fn whole(&self, ended: Ended) -> Json {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": self.text, "refusal": null},
                "logprobs": null,
                "finish_reason": ended.finish,
            }],
            "usage": self.usage(ended),
        })
    }

    fn chunk(&self, choices: Json) -> Json {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn choice(&self, delta: Json, finish: Option<&str>) -> Json {
        self.chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]))
    }

    /// What a stream begins with.
    pub fn opening(&self) -> Json {
        self.choice(json!({"role": "assistant", "content": ""}), None)
    }

    /// More of the text.
    pub fn piece(&self, text: &str) -> Json {
        self.choice(json!({"content": text}), None)
    }

    /// How the answer ended.
    pub fn ending(&self, ended: Ended) -> Json {
        self.choice(json!({}), Some(ended.finish))
    }

    /// The counts of tokens, which a stream ends with where they are asked for.
    pub fn usage_event(&self, ended: Ended) -> Json {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = self.usage(ended);
        chunk
    }
}
