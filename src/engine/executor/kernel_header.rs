//! The comment in front of each kernel of `cuda/`, by field: the formula, the grid, the work, what bounds it.

use super::kernel_table::SOURCES;

/// The comment of one kernel, or of all storage types of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What it is called there, for example `add_<f32|bf16>`.
    pub title: String,
    /// What it does, in a sentence.
    pub sentence: String,
    /// The fields in their order: `Math`, `Tensors`, `Grid`, … with their text on one line.
    pub fields: Vec<(String, String)>,
}

/// The fields that every header has.
pub const FIELDS: [&str; 9] = [
    "Math", "Tensors", "Grid", "Smem", "Work", "Accuracy", "Ragged", "Order", "Source",
];

impl Header {
    /// The text of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, text)| text.as_str())
    }

    /// What bounds it, from the end of the field `Work`.
    pub fn bound(&self) -> Option<&str> {
        let (_, bound) = self.field("Work")?.rsplit_once("bound: ")?;
        Some(bound.trim())
    }

    /// How many letters of `kernel` the title covers; `None` when it is of another kernel.
    fn covers(&self, kernel: &str) -> Option<usize> {
        alternatives(&self.title)
            .into_iter()
            .filter(|name| {
                kernel
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            })
            .map(|name| name.len())
            .max()
    }
}

/// The names a title such as `add_<f32|bf16>`, `norm[_wide]_f32` or `copy, fill` stands for.
fn alternatives(title: &str) -> Vec<String> {
    let mut names = Vec::new();
    let title = title.replace('[', "<|").replace(']', ">");
    for name in title.split(',').map(str::trim) {
        let mut open = vec![name.to_owned()];
        // One pair of brackets at a time: what comes out may have another, and is put back.
        while let Some(name) = open.pop() {
            match name.split_once('<').and_then(|(before, rest)| {
                let (choices, after) = rest.split_once('>')?;
                Some((before.to_owned(), choices.to_owned(), after.to_owned()))
            }) {
                Some((before, choices, after)) => open.extend(
                    choices
                        .split('|')
                        .map(|choice| format!("{before}{choice}{after}")),
                ),
                None => names.push(name),
            }
        }
    }
    names
}

/// The headers in the text of a `.cu` file: comments whose first line is `// name: sentence` and that have a field `Math`.
pub fn headers(source: &str) -> Vec<Header> {
    let mut found = Vec::new();
    let mut block: Vec<&str> = Vec::new();
    // An empty line at the end closes a comment that the file ends with.
    for line in source.lines().chain([""]) {
        match line.strip_prefix("//") {
            Some(text) => block.push(text),
            None => {
                found.extend(read(&block));
                block.clear();
            }
        }
    }
    found
}

fn read(block: &[&str]) -> Option<Header> {
    let first_field = block.iter().position(|line| field(line).is_some())?;
    // The sentence may follow other remarks in the same comment: its line is the last one that opens with a name.
    let is_title = |line: &&str| {
        line.trim().split_once(": ").is_some_and(|(title, _)| {
            !title.is_empty()
                && title
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_<>[]|, ".contains(c))
        })
    };
    let start = block[..first_field].iter().rposition(is_title)?;
    let (title, sentence) = block[start].trim().split_once(": ")?;
    let mut header = Header {
        title: title.to_owned(),
        sentence: sentence.trim().to_owned(),
        fields: Vec::new(),
    };
    for line in &block[start + 1..] {
        match (field(line), header.fields.last_mut()) {
            (Some((name, text)), _) => header.fields.push((name.to_owned(), squeeze(text))),
            (None, Some((_, text))) => *text += &format!(" {}", squeeze(line)),
            (None, None) => header.sentence += &format!(" {}", squeeze(line)),
        }
    }
    Some(header)
}

fn field(line: &str) -> Option<(&str, &str)> {
    let (name, text) = line.split_once(':')?;
    let name = name.trim();
    FIELDS.contains(&name).then_some((name, text))
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The header of `kernel` in the file `stem`: the one whose title covers most of its name.
pub fn header(stem: &str, kernel: &str) -> Option<Header> {
    let (_, source) = SOURCES.iter().find(|(name, _)| *name == stem)?;
    headers(source)
        .into_iter()
        .filter_map(|header| Some((header.covers(kernel)?, header)))
        .max_by_key(|(length, _)| *length)
        .map(|(_, header)| header)
}
