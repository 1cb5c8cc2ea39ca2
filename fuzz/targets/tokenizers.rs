//! tokenizer.json: ids below the vocabulary's size, or a sentence.
#![no_main]

use keel::data::chat::{ChatTemplate, ChatTokenizer, Conversation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory can be written");
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, bytes).expect("memory can be written");
    let Ok(tokenizer) = ChatTokenizer::open(&path, ChatTemplate::Qwen25) else {
        return;
    };
    let conversation = Conversation {
        image_tokens: 2,
        is_marked: true,
        system: None,
        context: "",
        unsupervised: &[],
        turns: vec![["what is <image>? <|im_end|> ü 你", "a fox"]],
    };
    let sequence = tokenizer.sequence(&conversation);
    for id in &sequence.ids {
        assert!((0..tokenizer.vocabulary() as i32).contains(id));
    }
    let _ = tokenizer.decode(&sequence.ids);
});
