//! Records as people write them: lists, lines and tables of captions, questions and conversations.

use serde_json::{Value, json};

use crate::json::{change_tree, text_of};
use crate::{Choices, below, change_bytes, change_order, once_in, one_of};

/// A file of records.
#[derive(Debug)]
pub struct Records {
    /// How it is called; its ending says what it is.
    pub name: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// How many records it has; nothing where they were changed.
    pub records: Option<usize>,
}

/// Words of captions, questions and answers.
const WORDS: [&str; 10] = [
    "a fox",
    "a \"red\" fox, running",
    "ein Füchslein",
    "狐狸",
    "two\nlines",
    "it's 3.5\tmeters",
    "=1+1",
    "null",
    "🦊",
    "a; b",
];

fn words(choices: &mut Choices<'_>) -> Value {
    (one_of(choices, &WORDS)).into()
}

fn record(choices: &mut Choices<'_>) -> Value {
    match below(choices, 6) {
        0 => json!({"image": "a.png", "caption": words(choices)}),
        1 => json!({"image": "a.png", "question": words(choices), "answer": words(choices)}),
        2 => json!({"image": "a.png", "question": words(choices), "answers": [
            {"answer": words(choices)}, {"answer": words(choices)}], "caption": null}),
        3 => json!({"id": 7, "image": "a.png", "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": words(choices)},
            {"from": "human", "value": words(choices)}, {"from": "gpt", "value": words(choices)}]}),
        4 => json!({"image": ["a.png", "a.png"], "conversations": [
            {"from": "human", "value": "<image><image> same?"}, {"from": "gpt", "value": words(choices)}]}),
        _ => json!({"system": "Be brief.", "messages": [
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": words(choices)}]},
            {"role": "assistant", "content": words(choices), "loss": true}]}),
    }
}

fn json_list(choices: &mut Choices<'_>) -> Records {
    let count = 1 + below(choices, 5);
    let mut list = Value::Array((0..count).map(|_| record(choices)).collect());
    let changes = change_tree(choices, &mut list, 3);
    let (bytes, is_changed) = text_of(choices, &list);
    Records {
        name: "input.json",
        bytes,
        records: (changes == 0 && !is_changed).then_some(count),
    }
}

fn json_lines(choices: &mut Choices<'_>) -> Records {
    let count = 1 + below(choices, 5);
    let (mut bytes, mut is_valid) = (Vec::new(), true);
    let end: &[u8] = one_of(choices, &[b"\n".as_slice(), b"\r\n", b"\n\n"]);
    for _ in 0..count {
        let mut record = record(choices);
        let changes = if once_in(choices, 3) {
            change_tree(choices, &mut record, 2)
        } else {
            0
        };
        bytes.extend(record.to_string().as_bytes());
        bytes.extend(end);
        is_valid &= changes == 0;
    }
    if once_in(choices, 4) {
        change_bytes(choices, &mut bytes);
        is_valid = false;
    }
    Records {
        name: "input.jsonl",
        bytes,
        records: is_valid.then_some(count),
    }
}

/// A cell of a table; quoted where it must be, and sometimes where it need not.
fn cell(choices: &mut Choices<'_>, text: &str, delimiter: char) -> String {
    let must = text.contains([delimiter, '"', '\n', '\r']);
    if must || once_in(choices, 4) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Where tables are read from, and how their cells are parted there.
const TABLES: [(&str, char); 5] = [
    ("input.csv", ','),
    ("input.csv", '\t'),
    ("input.csv", ';'),
    ("input.tsv", '\t'),
    ("metadata.csv", ','),
];

fn table(choices: &mut Choices<'_>) -> Records {
    let (name, delimiter) = one_of(choices, &TABLES);
    let image = if name == "metadata.csv" {
        "file_name"
    } else {
        "image"
    };
    let headings = [
        vec![image, "caption"],
        vec![image, "question", "answer"],
        vec!["id", image, "text"],
    ];
    let heading = &headings[below(choices, headings.len())];
    let count = 1 + below(choices, 5);
    let mut rows = vec![
        heading
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>(),
    ];
    for row in 0..count {
        let cells = heading.iter().map(|name| match *name {
            "id" => row.to_string(),
            name if name == image => "a.png".to_owned(),
            _ => {
                let text = one_of(choices, &WORDS);
                cell(choices, text, delimiter)
            }
        });
        rows.push(cells.collect());
    }
    let mut is_valid = true;
    for _ in 0..below(choices, 3) {
        is_valid = false;
        match below(choices, 3) {
            0 => change_order(choices, &mut rows),
            _ if rows.is_empty() => {}
            1 => {
                let index = below(choices, rows.len());
                change_order(choices, &mut rows[index]);
            }
            _ => {
                let index = below(choices, rows.len());
                let broken = ["\"", "a\"b", "\"a\"b", "\"\"\"", "", "\r", "\0", "\u{feff}"];
                let cell = one_of(choices, &broken).to_owned();
                rows[index].push(cell);
            }
        }
    }
    let end = one_of(choices, &["\n", "\r\n", "\n\n"]);
    let mut bytes = Vec::new();
    if once_in(choices, 4) {
        bytes.extend("\u{feff}".as_bytes());
    }
    for row in &rows {
        bytes.extend(row.join(&delimiter.to_string()).as_bytes());
        bytes.extend(end.as_bytes());
    }
    if once_in(choices, 4) {
        change_bytes(choices, &mut bytes);
        is_valid = false;
    }
    Records {
        name,
        bytes,
        records: is_valid.then_some(count),
    }
}

/// A list, lines or a table, with up to a few changes inside.
pub fn records(choices: &mut Choices<'_>) -> Records {
    match below(choices, 4) {
        0 => json_list(choices),
        1 => json_lines(choices),
        _ => table(choices),
    }
}
