//! What an answer to a benchmark's question means, by the rules that VLMEvalKit applies where no model is asked to judge:
//! `can_infer`, `YOrN_Extraction` and `process_answer`, held to what those functions give (`tools/golden_benchmark.py`). Their
//! oddities are kept: a score is worth nothing beside others unless it is made in the same way.

use super::answer_match::number_as_digits;

/// Words from the end of an answer in which a letter counts as the chosen option.
const LAST_WORDS: usize = 4;

/// Answers with one of these choose nothing.
const REFUSALS: [&str; 4] = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
];

/// The option that an answer means: the only option's letter among its words, which must be one of the last four, so that an
/// article `A` at the beginning of a sentence is none; else the letter A to D after *answer is*; else the only option whose
/// text is in it, unless the answer is more than twice as long as all options together. A refusal, or the letter Z, is none.
pub fn chosen_option(answer: &str, options: &[(char, String)]) -> Option<char> {
    if REFUSALS.iter().any(|refusal| answer.contains(refusal)) {
        return None;
    }
    let spaced: String = answer
        .chars()
        .map(|c| if ".()[],:;!*#{}".contains(c) { ' ' } else { c })
        .collect();
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let place = |letter: char| {
        let mut words = words.iter();
        words.position(|word| word.strip_prefix(letter) == Some(""))
    };
    let named: Vec<(char, usize)> = options
        .iter()
        .filter_map(|(letter, _)| Some((*letter, place(*letter)?)))
        .collect();
    match named[..] {
        [(letter, at)] if at + LAST_WORDS >= words.len() => return Some(letter),
        [] if place('Z').is_some() => return None,
        _ => {}
    }
    let said = letter_after_answer_is(answer);
    if let Some((letter, _)) = options.iter().find(|(letter, _)| Some(*letter) == said) {
        return Some(*letter);
    }
    let answer = answer.to_lowercase();
    let length: usize = options.iter().map(|(_, text)| text.chars().count()).sum();
    // A long text contains every option by chance.
    if answer.chars().count() > 2 * length {
        return None;
    }
    let held = |(_, text): &&(char, String)| answer.contains(&text.to_lowercase());
    let found: Vec<&(char, String)> = options.iter().filter(held).collect();
    match found[..] {
        [(letter, _)] => Some(*letter),
        _ => None,
    }
}

/// The letter A to D, in either case, that first stands behind *answer is*, with or without asterisks between. It may be the
/// first letter of a word.
fn letter_after_answer_is(answer: &str) -> Option<char> {
    let answer = answer.to_ascii_lowercase();
    fn gap(text: &str) -> Option<&str> {
        let rest = text.trim_start();
        (rest.len() < text.len()).then_some(rest)
    }
    let behind = |(at, word): (usize, &str)| -> Option<char> {
        let rest = gap(&answer[at + word.len()..])?;
        let rest = gap(rest.strip_prefix("is")?)?;
        let letter = rest.trim_start_matches('*').chars().next()?;
        ('a'..='d')
            .contains(&letter)
            .then(|| letter.to_ascii_uppercase())
    };
    answer.match_indices("answer").find_map(behind)
}

/// Yes or no, where one of the words is in an answer and the other is not.
pub fn yes_or_no(answer: &str) -> Option<bool> {
    let answer = without_punctuation(&answer.to_lowercase());
    let has = |wanted: &str| answer.split_whitespace().any(|word| word == wanted);
    match (has("yes"), has("no")) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// Whether two short answers are the same: in lower case, without articles and punctuation, number words as digits, contractions
/// with or without their apostrophes (Antol et al. 2015).
pub fn short_answers_match(given: &str, wanted: &str) -> bool {
    words_of(given) == words_of(wanted)
}

/// Contractions that count as the same word without an apostrophe.
const CONTRACTIONS: &str = "aint arent cant couldve couldnt couldntve didnt doesnt dont hadnt hadntve hasnt havent hed hedve \
    hes howd howll hows isnt itd itdve itll lets maam mightnt mightntve mightve mustnt mustve neednt notve oclock oughtnt \
    shant shedve shes shouldve shouldnt shouldntve somebodyd somebodydve somebodyll somebodys someoned someonedve someonell \
    someones somethingd somethingdve somethingll thats thered theredve therere theres theyd theydve theyll theyre theyve \
    twas wasnt wedve weve werent whatll whatre whats whatve whens whered wheres whereve whod whodve wholl whos whove whyll \
    whyre whys wont wouldve wouldnt wouldntve yall yallll yalldve youd youdve youll youre youve";

fn words_of(answer: &str) -> Vec<String> {
    let text = without_punctuation(answer.replace(['\n', '\t'], " ").trim());
    let words = text.split_whitespace().map(str::to_lowercase);
    let whole = |word: String| {
        let bare = word.replace('\'', "");
        if CONTRACTIONS.split_whitespace().any(|known| known == bare) {
            bare
        } else {
            word
        }
    };
    words
        .map(|word| number_as_digits(&word).to_owned())
        .filter(|word| !["a", "an", "the"].contains(&word.as_str()))
        .map(whole)
        .collect()
}

/// A text without its punctuation: a mark that has a space beside it somewhere, or any mark of a text with a comma in a number,
/// leaves no gap, another leaves a space; a full stop goes unless there is a digit before or behind it.
fn without_punctuation(text: &str) -> String {
    const MARKS: &str = ";/[]\"{}()=+\\_-><@`,?!";
    let letters: Vec<char> = text.chars().collect();
    let has_number = letters
        .windows(3)
        .any(|three| three[0].is_ascii_digit() && three[1] == ',' && three[2].is_ascii_digit());
    let leaves_no_gap = |mark: char| {
        let beside = |pair: &[char]| pair == [mark, ' '] || pair == [' ', mark];
        has_number || letters.windows(2).any(beside)
    };
    let kept: Vec<char> = letters
        .iter()
        .filter_map(|letter| match letter {
            letter if !MARKS.contains(*letter) => Some(*letter),
            mark if leaves_no_gap(*mark) => None,
            _ => Some(' '),
        })
        .collect();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| kept.get(at))
            .is_some_and(char::is_ascii_digit)
    };
    let stays =
        |at: usize| kept[at] != '.' || is_digit(at.checked_sub(1)) || is_digit(Some(at + 1));
    (0..kept.len())
        .filter(|at| stays(*at))
        .map(|at| kept[at])
        .collect()
}
