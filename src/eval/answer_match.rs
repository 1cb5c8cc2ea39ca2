//! When an answer counts as right though it is not letter for letter the one that was wanted.

/// An answer as it is compared: lower case, without articles and punctuation, number words as digits, single spaces, in
/// the manner of the VQA evaluation (Antol et al. 2015). Full stops and commas between digits stay.
pub fn normalise_answer(answer: &str) -> String {
    let letters: Vec<char> = answer.to_lowercase().chars().collect();
    let mut text = String::with_capacity(answer.len());
    for (index, letter) in letters.iter().enumerate() {
        let is_digit = |at: Option<&char>| at.is_some_and(char::is_ascii_digit);
        let before = index.checked_sub(1).and_then(|at| letters.get(at));
        let in_number = is_digit(before) && is_digit(letters.get(index + 1));
        match letter {
            letter if letter.is_alphanumeric() => text.push(*letter),
            '.' | ',' | ':' if in_number => text.push(*letter),
            // What belongs to a word leaves no gap: "it's" becomes "its".
            '\'' | '’' => {}
            _ => text.push(' '),
        }
    }
    let is_article = |word: &&str| ["a", "an", "the"].contains(word);
    // The letter A may be the whole answer.
    let is_bare = text.split_whitespace().all(|word| is_article(&word));
    let words = text
        .split_whitespace()
        .filter(|word| is_bare || !is_article(word))
        .map(number_as_digits);
    words.collect::<Vec<_>>().join(" ")
}

/// A lower-case word, in digits where it is a number up to ten.
pub(super) fn number_as_digits(word: &str) -> &str {
    match word {
        "none" | "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        word => word,
    }
}

/// Whether two answers are the same once normalised.
pub fn answers_match(given: &str, wanted: &str) -> bool {
    normalise_answer(given) == normalise_answer(wanted)
}
