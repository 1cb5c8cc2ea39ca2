//! The embedded tokeniser: round trips, exact size, and the merges file rebuilt from the corpus.

use keel::data::tokenizer::{
    BEGIN, END, FIRST_BYTE, FIRST_MERGE, SPECIAL_NAMES, Tokenizer, VOCABULARY,
};
use keel::emoji::corpus;
use keel::emoji::emoji_set::EmojiSet;
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_text_round_trips_and_uses_no_special_id(text in any::<String>()) {
        let tokenizer = Tokenizer::embedded();
        let ids = tokenizer.encode(&text);
        prop_assert!(ids.iter().all(|&id| id >= FIRST_BYTE && usize::from(id) < VOCABULARY));
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn words_of_the_corpus_round_trip_with_spaces_and_digits(text in "[a-z0-9 ,'?:-]{0,60}") {
        let tokenizer = Tokenizer::embedded();
        let ids = tokenizer.encode(&text);
        prop_assert!(ids.len() <= text.len());
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn any_ids_decode_without_panic(ids in prop::collection::vec(any::<u16>(), 0..40)) {
        let text = Tokenizer::embedded().decode(&ids);
        prop_assert!(text.len() <= 3 * 64 * ids.len());
    }
}

#[test]
fn the_vocabulary_is_512_and_special_ids_are_fixed() {
    let tokenizer = Tokenizer::embedded();
    assert_eq!(tokenizer.len(), VOCABULARY);
    assert_eq!(SPECIAL_NAMES[usize::from(BEGIN)], "<begin>");
    assert_eq!(SPECIAL_NAMES[usize::from(END)], "<end>");
    assert_eq!(
        tokenizer.decode(&[BEGIN, FIRST_BYTE + u16::from(b'k'), END]),
        "k"
    );
}

#[test]
fn the_embedded_merges_are_those_learned_from_the_corpus() {
    let learned = corpus::learn_tokenizer(&EmojiSet::embedded()).unwrap();
    assert_eq!(
        learned.to_file(),
        include_str!("../assets/tokenizer.merges"),
        "the tasks' texts have changed: run `keel data tokenizer`"
    );
}

#[test]
fn common_words_are_single_tokens() {
    let tokenizer = Tokenizer::embedded();
    for word in [" the", " of", "what", " flag", "yes", " yellow"] {
        assert_eq!(tokenizer.encode(word).len(), 1, "{word:?}");
    }
    for digit in ["1", "2", "3", "4"] {
        assert_eq!(tokenizer.encode(digit).len(), 1);
    }
}

#[test]
fn learning_joins_the_most_frequent_pair_first() {
    let mut corpus: Vec<(String, u64)> = vec![("abab".into(), 5), ("cd".into(), 9)];
    // Enough other pairs to fill the vocabulary, each rarer than the two above.
    for x in b'a'..=b'z' {
        for y in b'a'..=b'z' {
            corpus.push((String::from_utf8(vec![x, y]).unwrap(), 1));
        }
    }
    let tokenizer = Tokenizer::learn(corpus.iter().map(|(text, n)| (text.as_str(), *n))).unwrap();
    assert_eq!(
        tokenizer.encode("ab"),
        [FIRST_MERGE],
        "ab: 2 x 5 + 1 beats cd: 9 + 1"
    );
    assert_eq!(tokenizer.encode("cd"), [FIRST_MERGE + 1]);
    let again = Tokenizer::parse("a copy", &tokenizer.to_file()).unwrap();
    assert_eq!(again.to_file(), tokenizer.to_file());
}

#[test]
fn broken_merges_are_refused_with_their_place() {
    for (text, needle) in [
        ("300 7\n", "not made yet"),
        ("1 7\n", "not made yet"),
        ("7 8\n7 8\n", "repeats"),
        ("7 8\nseven 8\n", "line 2"),
        ("7\n", "line 1"),
    ] {
        let error = Tokenizer::parse("file x", text).unwrap_err().to_string();
        assert!(
            error.contains(needle) && error.contains("file x"),
            "{error}"
        );
    }
    let many: String = (0..251)
        .map(|i| format!("{} {}\n", 6 + i % 200, 7 + i / 200))
        .collect();
    assert!(
        Tokenizer::parse("file x", &many)
            .unwrap_err()
            .to_string()
            .contains("at most 250")
    );
}
