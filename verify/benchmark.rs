//! Benchmarks in VLMEvalKit's layout: its rules for answers, files that are wrong, and scores that are what was kept.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keel::data::benchmark::{Benchmark, BenchmarkItem};
use keel::eval::{
    AnsweredItem, BenchmarkScore, Wording, chosen_option, is_right, short_answers_match, yes_or_no,
};
use serde::Deserialize;

use crate::command::{keel, tiny_recipe};
use crate::data_pairs::images;
use crate::harness::goldens;

fn options(texts: &[&str]) -> Vec<(char, String)> {
    let letters = "ABCDEFG".chars();
    letters
        .zip(texts)
        .map(|(letter, text)| (letter, (*text).to_owned()))
        .collect()
}

#[test]
fn an_option_is_chosen_by_its_letter_near_the_end_or_by_its_text_alone() {
    let animals = options(&["cat", "dog", "a brown horse", "cow"]);
    for (answer, wanted) in [
        ("B", Some('B')),
        ("B.", Some('B')),
        ("(C)", Some('C')),
        ("The answer is D", Some('D')),
        ("Answer: **B**", Some('B')),
        ("A B", None),
        ("It is a dog.", Some('B')),
        ("DOG", Some('B')),
        ("a dog or a cat", None),
        ("b", None),
        // An article, far from the end of an answer that names an option's text.
        ("A big animal that barks at night: dog", Some('B')),
        ("B the best answer", Some('B')),
        ("B is the best answer", None),
        ("E", None),
        ("", None),
        // More than twice as long as all options together.
        (
            "it has four legs and a tail and barks, so it must surely be a dog",
            None,
        ),
    ] {
        assert_eq!(chosen_option(answer, &animals), wanted, "{answer:?}");
    }
}

#[test]
fn yes_and_no_are_words_and_exclude_each_other() {
    for (answer, wanted) in [
        ("Yes", Some(true)),
        ("yes, there is.", Some(true)),
        ("No.", Some(false)),
        ("no/not at all", Some(false)),
        ("yes and no", None),
        ("nothing", None),
        ("yesterday", None),
        ("", None),
    ] {
        assert_eq!(yes_or_no(answer), wanted, "{answer:?}");
    }
    let item = |answer: &str| BenchmarkItem {
        answer: answer.to_owned(),
        ..BenchmarkItem::default()
    };
    assert!(is_right(&item("No"), "no, it is not") && !is_right(&item("No"), "maybe"));
    assert!(is_right(&item("three"), "the 3") && !is_right(&item("three"), "four"));
    assert!(is_right(&item("['red', \"crimson\"]"), "Crimson!"));
}

/// Options, an answer, and the option that it means.
type Choice = (Vec<(char, String)>, String, Option<char>);

/// What VLMEvalKit's own functions make of answers: `tools/golden_benchmark.py`.
#[derive(Deserialize)]
struct Rules {
    choices: Vec<Choice>,
    yes_no: Vec<(String, Option<bool>)>,
    short: ShortAnswers,
}

#[derive(Deserialize)]
struct ShortAnswers {
    answers: Vec<String>,
    /// Those that are equal, the lesser first.
    equal: Vec<(String, String)>,
}

#[test]
fn answers_mean_what_vlmevalkit_takes_them_for() {
    let text = fs::read(goldens().join("benchmark.json")).unwrap();
    let rules: Rules = serde_json::from_slice(&text).unwrap();
    assert!(rules.choices.len() > 150 && rules.short.equal.len() > 40);
    for (options, answer, wanted) in &rules.choices {
        assert_eq!(
            chosen_option(answer, options),
            *wanted,
            "{answer:?} of {options:?}"
        );
    }
    for (answer, wanted) in &rules.yes_no {
        assert_eq!(yes_or_no(answer), *wanted, "{answer:?}");
    }
    for given in &rules.short.answers {
        for wanted in &rules.short.answers {
            let pair = (given.min(wanted).clone(), given.max(wanted).clone());
            let are_equal = given == wanted || rules.short.equal.contains(&pair);
            assert_eq!(
                short_answers_match(given, wanted),
                are_equal,
                "{given:?} and {wanted:?}"
            );
        }
    }
}

#[test]
fn questions_are_put_as_vlmevalkit_puts_them() {
    let item = BenchmarkItem {
        question: "What is it?".into(),
        hint: Some("It barks.".into()),
        options: options(&["cat", "dog"]),
        answer: "B".into(),
        ..BenchmarkItem::default()
    };
    assert_eq!(
        Wording::VlmEvalKit.question(&item),
        "Hint: It barks.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\nPlease select the correct answer from the options above. \n"
    );
    assert_eq!(Wording::Plain.question(&item), "What is it?");
    let open = BenchmarkItem {
        options: Vec::new(),
        answer: "yes".into(),
        ..item
    };
    assert_eq!(
        Wording::VlmEvalKit.question(&open),
        "What is it? Please answer yes or no."
    );
    let said = BenchmarkItem {
        question: "Is it a dog? Please answer yes or no.".into(),
        ..open
    };
    assert_eq!(Wording::VlmEvalKit.question(&said), said.question);
}

const HEADING: &str = "index\timage\tquestion\tA\tB\tanswer\tcategory\n";

/// Two images; the third row shares the first one's; the last does not fit into any context.
pub(crate) fn benchmark() -> String {
    let files = images();
    let image = |index: usize| STANDARD.encode(&files[index].1);
    let long = "very ".repeat(300);
    format!(
        "{HEADING}1\t{}\twhat is this?\tcat\tdog\tB\tanimals\n2\t{}\tis there a cat?\t\t\tYes\tpresence\n\
         3\t1\thow many?\t\t\t3\t\n4\t1\t{long}?\tup\tdown\tA\tanimals\n",
        image(0),
        image(1)
    )
}

#[test]
fn rows_that_share_a_image_find_it_again_whatever_stands_between() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.tsv");
    // Quoted fields with line breaks before the places that are looked for again; a row that shares with one that shares.
    let quoted =
        "5\t2\t\"two\nlines\"\t\t\tYes\t\n6\t3\twhat?\t\t\tcat\t\n7\t5\twhat?\t\t\tcat\t\n";
    fs::write(&path, benchmark() + quoted).unwrap();
    let items = Benchmark::open(&path).unwrap().map(Result::unwrap);
    let found: Vec<usize> = items
        .map(|item| {
            let mut files = images().into_iter();
            files
                .position(|(_, file)| file[..] == item.image[..])
                .expect("an image of the file")
        })
        .collect();
    assert_eq!(found, [0, 1, 0, 0, 1, 0, 1]);
}

#[test]
fn a_benchmark_is_answered_scored_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("one.toml"), tiny_recipe(&["world-knowledge"])).unwrap();
    let train = "train --device cpu --recipe one.toml --max-steps 1 --no-evaluation --out run";
    keel(path, &train.split(' ').collect::<Vec<_>>()).fine();
    let text = benchmark();
    fs::write(path.join("small.tsv"), &text).unwrap();
    let eval = |further: &[&str]| keel(path, &[&["eval", "run", "--bench"][..], further].concat());
    let answer = eval(&["small.tsv"]).fine();
    for part in [
        "multiple choice",
        "yes or no",
        "short answer",
        "category animals",
        "answers in run/evaluations",
    ] {
        assert!(answer.stdout.contains(part), "{answer:#?}");
    }
    let kept = path.join("run/evaluations/1-world-knowledge.small.jsonl");
    let lines = |path: &Path| -> Vec<AnsweredItem> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let answered = lines(&kept);
    assert_eq!(answered.len(), 4);
    assert!(answered[..3].iter().all(|item| item.prediction.is_some()));
    assert_eq!(answered[3].prediction, None);
    let wanted = BenchmarkScore::of(&answered);
    let json = eval(&["small.tsv", "--json"]).fine();
    let score: BenchmarkScore = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(score, wanted);
    assert_eq!(
        (score.all.count, score.all.too_long, score.all.chance),
        (4, 1, 1.5)
    );
    // Against itself nothing differs, and there is nothing to be tested.
    let same = eval(&["small.tsv", "--against", "run"]).fine();
    assert!(
        same.stdout
            .contains("run less run: +0.0 ± 0.0 points, by a paired test"),
        "{same:#?}"
    );
    assert!(
        same.stdout.contains("alone: 0; in run alone: 0"),
        "{same:#?}"
    );
    // The same in either wording where the question fits; another wording is another answer or none.
    eval(&["small.tsv", "--wording", "vlmevalkit"]).fine();
    eval(&["small.tsv", "--wording", "chatty"]).code_is(2);

    // What is wrong is named, and what was answered before it is kept.
    let broken = |from: &str, to: &str| {
        fs::write(path.join("broken.tsv"), text.replacen(from, to, 1)).unwrap();
        eval(&["broken.tsv"])
    };
    broken("\tanswer\t", "\tanswers\t").refused(&["broken.tsv", "its heading lacks answer"]);
    broken("\n3\t1\t", "\n3\t7\t").refused(&[
        "row 3 (index \"3\")",
        "no row before it has the index \"7\"",
    ]);
    let kept = path.join("run/evaluations/1-world-knowledge.broken.jsonl");
    assert_eq!(lines(&kept), answered[..2]);
    broken("\tB\tanimals", "\tC\tanimals")
        .refused(&["row 1", "its answer \"C\" is none of its options"]);
    let long = "!".repeat(100);
    broken("\n3\t1\t", &format!("\n3\t{long}\t")).refused(&["row 3", "not base64"]);
    let wrong = STANDARD.encode([7u8; 90]);
    broken("\n3\t1\t", &format!("\n3\t{wrong}\t")).refused(&["broken.tsv, index 3"]);
    broken("how many?", "").refused(&["row 3", "the column question is empty"]);
    eval(&["none.tsv"]).refused(&["none.tsv", "cannot open"]);
}
