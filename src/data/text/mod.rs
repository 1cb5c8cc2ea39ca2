//! Text: the embedded tokeniser, those of published models, and the templates of their chats.

pub mod chat;
pub mod tokenizer;
