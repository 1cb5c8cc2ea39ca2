//! JSON, changed as a tree and then, sometimes, as a text.

use serde_json::{Map, Number, Value};

use crate::{Choices, below, change_bytes, change_order, number, once_in, one_of};

/// Values in the tree.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// The value with this number, counted from the root down.
fn at<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| at(item, index)),
        Value::Object(map) => map.values_mut().find_map(|item| at(item, index)),
        _ => None,
    }
}

/// Words that are no ordinary text.
const TEXTS: [&str; 9] = [
    "",
    " ",
    "\0",
    "\u{202e}",
    "<image>",
    "../x",
    "NaN",
    "\u{feff}a\r\nb",
    "<|im_end|>",
];

/// Changes what one value is, in its own type or to another.
fn change_value(choices: &mut Choices<'_>, value: &mut Value) {
    if once_in(choices, 4) {
        *value = match below(choices, 7) {
            0 => Value::Null,
            1 => Value::Bool(true),
            2 => Value::from(number(choices, 1, 64)),
            3 => Value::from(-1.5e300),
            4 => Value::from(one_of(choices, &TEXTS)),
            5 => Value::Array(vec![std::mem::take(value)]),
            _ => Value::Object(Map::from_iter([("a".to_owned(), std::mem::take(value))])),
        };
        return;
    }
    match value {
        Value::Null => *value = Value::from(0),
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(was) => {
            let new = match (was.as_u64(), below(choices, 5)) {
                (Some(was), 0..4) => Number::from(number(choices, was, 64)),
                (_, 0) => Number::from(-1),
                _ => {
                    Number::from_f64(was.as_f64().unwrap_or(0.5) * 1e18).unwrap_or(Number::from(0))
                }
            };
            *was = new;
        }
        Value::String(text) if once_in(choices, 2) => one_of(choices, &TEXTS).clone_into(text),
        Value::String(text) => {
            let mut bytes = std::mem::take(text).into_bytes();
            change_bytes(choices, &mut bytes);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Value::Array(items) => change_order(choices, items),
        Value::Object(map) => {
            let mut entries: Vec<_> = std::mem::take(map).into_iter().collect();
            change_order(choices, &mut entries);
            map.extend(entries);
        }
    }
}

/// Changes up to `most` values of a tree. Returns how many.
pub(crate) fn change_tree(choices: &mut Choices<'_>, tree: &mut Value, most: usize) -> usize {
    let changes = below(choices, most + 1);
    for _ in 0..changes {
        let mut index = below(choices, count(tree));
        if let Some(value) = at(tree, &mut index) {
            change_value(choices, value);
        }
    }
    changes
}

/// What no writer of JSON writes.
const INSERTED: [&[u8]; 11] = [
    b"NaN",
    b"1e999",
    b"-",
    b"\"\\ud800\"",
    b"\xff",
    b",",
    b"\"",
    b"\0",
    b"\xef\xbb\xbf",
    b"{\"a\":1,\"a\":2}",
    b"// no\n",
];

/// The text of a tree. Once in three times it is no JSON any more.
pub(crate) fn text_of(choices: &mut Choices<'_>, tree: &Value) -> (Vec<u8>, bool) {
    let mut text = if once_in(choices, 2) {
        format!("{tree:#}").into_bytes()
    } else {
        tree.to_string().into_bytes()
    };
    let is_changed = once_in(choices, 3);
    if is_changed {
        match below(choices, 3) {
            0 => change_bytes(choices, &mut text),
            1 => {
                let at = below(choices, text.len() + 1);
                text.splice(at..at, one_of(choices, &INSERTED).iter().copied());
            }
            _ => {
                let deep = [64, 127, 128, 5000][below(choices, 4)];
                let at = below(choices, text.len() + 1);
                text.splice(at..at, std::iter::repeat_n(b'[', deep));
            }
        }
    }
    (text, is_changed)
}

/// A JSON file with up to three values changed, and sometimes its text.
pub fn changed_json(choices: &mut Choices<'_>, valid: &[u8]) -> Vec<u8> {
    let Ok(mut tree) = serde_json::from_slice(valid) else {
        return valid.to_vec();
    };
    change_tree(choices, &mut tree, 3);
    text_of(choices, &tree).0
}
