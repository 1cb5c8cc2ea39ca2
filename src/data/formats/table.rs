//! Pairs in a table with a heading, separated by tabs, commas, semicolons or bars: a column of paths or of images in base64 (as
//! VLMEvalKit's), and a caption, or a question with its answer. Rows are read at random from the places found once.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::archive::InputFile;
use super::files::open_reader;
use super::image_place::ImagePlace;
use super::limits::MAX_RECORD_BYTES;
use super::record_text::{Problem, RecordText, bad};
use super::records;
use super::remote;
use super::rows::{Row, RowDefect, next_row};
use super::skips::{Reason, SkipLog};
use keel_base::error::{Error, Result};

/// What may stand between fields. The file's ending says which to try first; its heading decides, because tables called .csv
/// are written with tabs too (open_clip's default).
const SEPARATORS: [u8; 4] = *b",\t;|";

/// Columns of images, best first.
const IMAGES: [&str; 9] = [
    "image",
    "image_path",
    "file_name",
    "filepath",
    "path",
    "filename",
    "image_file_name",
    "image_name",
    "img_path",
];

/// Columns of words, and the keys that they have in a JSON record.
const WORDS: [(&str, &str); 8] = [
    ("caption", "caption"),
    ("text", "text"),
    ("question", "question"),
    ("answer", "answer"),
    ("answers", "answers"),
    ("system", "system"),
    ("title", "caption"),
    ("comment", "caption"),
];

/// An opened table.
#[derive(Debug)]
pub(crate) struct Table {
    source: InputFile,
    separator: u8,
    columns: Columns,
    /// What images' paths are relative to.
    pub folder: PathBuf,
    /// The usable rows.
    pub rows: Vec<RowSpan>,
}

/// Where a row lies.
#[derive(Debug)]
pub(crate) struct RowSpan {
    offset: u64,
    size: u64,
    /// Counted from 1, the heading not among them.
    number: u64,
}

/// Which columns say what.
#[derive(Debug)]
struct Columns {
    image: usize,
    /// Columns and their keys.
    words: Vec<(usize, &'static str)>,
}

impl Table {
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// The file or object that the table is.
    pub fn source(&self) -> &InputFile {
        &self.source
    }

    /// Reads a row again, with the name that messages call it by.
    pub fn row(&self, place: &RowSpan) -> Result<(String, ImagePlace, RecordText)> {
        let name = format!("{}, row {}", self.name(), place.number);
        let bytes = self.source.read(place.offset, place.size)?;
        let row = next_row(&mut &bytes[..], self.separator)
            .map_err(|error| Error::io(self.name(), "read", error))?
            .unwrap_or_default();
        let (image, words) = self
            .columns
            .read(&name, &row.fields)
            .map_err(|(_, error)| error)?;
        Ok((name, image, words))
    }
}

impl Columns {
    fn of(what: &str, heading: &[Vec<u8>]) -> Result<Columns> {
        let names: Vec<String> = heading
            .iter()
            .map(|name| {
                String::from_utf8_lossy(name)
                    .trim_start_matches('\u{feff}')
                    .trim()
                    .to_lowercase()
            })
            .collect();
        let place = |wanted: &str| names.iter().position(|name| name == wanted);
        let image = IMAGES.into_iter().find_map(place);
        let mut words: Vec<(usize, &'static str)> = Vec::new();
        // What cannot be honoured is read too, so that rows that have it are refused by name.
        let refused = records::REFUSED_KEYS.into_iter().map(|key| (key, key));
        for (column, key) in WORDS.into_iter().chain(refused) {
            // Of several names for a caption the first is taken.
            if let Some(at) = place(column)
                && words.iter().all(|(_, other)| *other != key)
            {
                words.push((at, key));
            }
        }
        let has = |key: &str| words.iter().any(|(_, other)| *other == key);
        if has("question") && !has("answer") && !has("answers") {
            // Some call the answers captions.
            for (_, key) in &mut words {
                if matches!(*key, "caption" | "text") {
                    *key = "answer";
                }
            }
        }
        let speaks = ["caption", "text", "answer", "answers"];
        let says_enough = words.iter().any(|(_, key)| speaks.contains(key));
        match image {
            Some(image) if says_enough => Ok(Columns { image, words }),
            _ => Err(Error::content(
                what,
                format!("its heading has the columns {}", names.join(", ")),
                "name a column image, and one caption, or two question and answer (test splits mostly have no answers)",
            )),
        }
    }

    fn read(&self, name: &str, fields: &[Vec<u8>]) -> Result<(ImagePlace, RecordText), Problem> {
        let text = |column: usize| {
            let field = fields.get(column).map(Vec::as_slice).unwrap_or_default();
            std::str::from_utf8(field).map_err(|_| {
                let error = Error::content(name, "it is not UTF-8", "save it as UTF-8");
                (Reason::BadRecord, error)
            })
        };
        let field = text(self.image)?.trim();
        if field.is_empty() {
            let error = Error::content(name, "it names no image", "add its path as image");
            return Err((Reason::NoImage, error));
        }
        let image = ImagePlace::of(name, "table", field)?;
        let mut object = Map::new();
        for (column, key) in &self.words {
            let text = text(*column)?;
            // An empty field is a table's null.
            if !text.trim().is_empty() {
                object.insert((*key).to_owned(), Value::from(text));
            }
        }
        if object.is_empty() {
            // As a record that says nothing in the one column that it could use.
            object.insert("caption".to_owned(), Value::from(""));
        }
        let words = records::words_of_object(name, &object)?;
        Ok((image, words.for_images(name, 1)?))
    }
}

/// The separator of a table and what its heading says.
fn heading(path: &Path, preferred: u8) -> Result<(u8, Columns)> {
    let what = remote::name_of(path);
    let others = SEPARATORS.into_iter().filter(|other| *other != preferred);
    let mut first_problem = None;
    for separator in [preferred].into_iter().chain(others) {
        let mut reader = BufReader::new(open_reader(path)?);
        let row = next_row(&mut reader, separator)
            .map_err(|e| Error::io(remote::name_of(path), "read", e))?;
        let Some(row) = row else {
            return Err(Error::content(
                &what,
                "it is empty",
                "give a table with a heading",
            ));
        };
        match Columns::of(&what, &row.fields) {
            Ok(columns) => return Ok((separator, columns)),
            Err(problem) => first_problem = first_problem.or(Some(problem)),
        }
    }
    Err(first_problem.expect("the loop has met at least one separator"))
}

/// Reads a table once, checking every row; images are looked for when they are drawn.
pub(crate) fn open(path: &Path, preferred: u8, skips: &SkipLog) -> Result<Table> {
    let source = InputFile::open(path)?;
    let what = remote::name_of(path);
    let (separator, columns) = heading(path, preferred)?;
    let mut reader = BufReader::with_capacity(1 << 16, open_reader(path)?);
    let mut next = || {
        next_row(&mut reader, separator).map_err(|e| Error::io(remote::name_of(path), "read", e))
    };
    let heading = next()?.unwrap_or_default();
    let width = heading.fields.len();
    let mut offset = heading.size;
    let mut number = 0;
    let mut rows = Vec::new();
    while let Some(row) = next()? {
        let size = row.size;
        if !row.fields.is_empty() {
            number += 1;
            let name = format!("{what}, row {number}");
            match checked(&name, &row, width)?.and_then(|()| columns.read(&name, &row.fields)) {
                Ok(_) => {
                    skips.count_good();
                    rows.push(RowSpan {
                        offset,
                        size,
                        number,
                    });
                }
                Err((reason, error)) => skips.count_bad(&what, reason, error),
            }
        }
        offset += size;
    }
    Ok(Table {
        source,
        separator,
        columns,
        folder: remote::folder_of(path),
        rows,
    })
}

/// The form of a row.
///
/// # Errors
/// A quote that took other rows with it, which nothing after it can be trusted past; within, what is wrong with this row alone.
fn checked(name: &str, row: &Row, width: usize) -> Result<Result<(), Problem>> {
    let problem = match row.defect {
        Some(RowDefect::OpenQuote) => "a quote that opens in it is never closed".to_owned(),
        Some(RowDefect::AfterQuote) if row.has_breaks => {
            "a quote that opens in it is closed in a later row, in the middle of a field".to_owned()
        }
        Some(RowDefect::TooLong) if row.has_breaks => {
            format!("a quote that opens in it is not closed within {MAX_RECORD_BYTES} bytes")
        }
        Some(RowDefect::AfterQuote) => {
            let problem = "letters follow the closing quote of a field";
            let remedy = "write quotes within a field twice, and the field in quotes";
            return Ok(Err(bad(name, problem, remedy)));
        }
        Some(RowDefect::TooLong) => {
            let problem = format!("it has more than {MAX_RECORD_BYTES} bytes");
            let error = Error::content(name, problem, "keep its image in a file of its own");
            return Ok(Err((Reason::TooLarge, error)));
        }
        None if row.fields.len() == width => return Ok(Ok(())),
        None => {
            let problem = format!("it has {} fields, the heading {width}", row.fields.len());
            let remedy = "give every row the same fields";
            return Ok(Err(bad(name, problem, remedy)));
        }
    };
    let remedy =
        "write the quote twice and its field in quotes (as csv writers do), or take it out";
    Err(Error::content(name, problem, remedy))
}
