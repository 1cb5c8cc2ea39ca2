//! Requests for answers in OpenAI's form: a conversation with what the program relies on, or a refusal that says why.
#![no_main]

use keel::data::chat::MARK;
use keel::eval::Sampling;
use keel::serve::ChatRequest;
use libfuzzer_sys::fuzz_target;

/// Images that the model has room for.
const MOST_IMAGES: usize = 3;

fuzz_target!(|bytes: &[u8]| {
    let request = match ChatRequest::read(bytes, "fuzzed", MOST_IMAGES) {
        Ok(request) => request,
        Err(fault) => {
            assert!(matches!(fault.status(), 400 | 404), "{fault:?}");
            let error = &fault.to_json()["error"];
            assert!(
                error["message"]
                    .as_str()
                    .is_some_and(|message| !message.is_empty())
            );
            assert_eq!(error["type"], "invalid_request_error");
            return;
        }
    };
    let chat = &request.chat;
    let [.., [_, answer]] = &chat.turns[..] else {
        panic!("a conversation without a question");
    };
    assert!(answer.is_empty(), "the last question is answered already");
    assert!(chat.images.len() <= MOST_IMAGES);
    if chat.is_marked {
        let marks = |text: &String| text.matches(MARK).count();
        let marked: usize = chat.turns.iter().map(|[question, _]| marks(question)).sum();
        assert_eq!(marked, chat.images.len());
    }
    if let Sampling::Random {
        temperature, top_p, ..
    } = request.sampling
    {
        assert!(temperature > 0.0 && temperature <= 2.0 && top_p > 0.0 && top_p <= 1.0);
    }
    assert!(request.most_tokens.is_none_or(|most| most > 0));
    assert!(request.stops.iter().all(|stop| !stop.is_empty()));
});
