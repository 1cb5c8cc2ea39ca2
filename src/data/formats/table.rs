//! Pairs in a table with a heading, separated by tabs or commas: a column of paths or of images in base64 (as
//! VLMEvalKit's), and a caption, or a question with its answer. Rows are read at random from the places found once.

use std::fs::File;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use csv::{ByteRecord, ReaderBuilder};

use super::archive::InputFile;
use super::lines::is_own_file;
use super::records::{self, RecordText};
use super::skips::{Reason, SkipLog};
use keel_base::error::{Error, Result};

/// Largest row, bytes: an image in base64 and its words.
const MAX_ROW_BYTES: u64 = 96 << 20;

/// Text longer than this in a column of images is no path.
const LONGEST_PATH: usize = 1024;

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
    caption: usize,
    question: Option<usize>,
}

/// Where a row's image comes from.
#[derive(Debug)]
pub(crate) enum ImageOfRow {
    /// A path below the table's folder.
    Path(String),
    /// The file itself.
    Bytes(Vec<u8>),
}

impl Table {
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// Reads a row again, with the name that messages call it by.
    pub fn row(&self, place: &RowSpan) -> Result<(String, ImageOfRow, RecordText)> {
        let name = format!("{}, row {}", self.name(), place.number);
        let bytes = self.source.read(place.offset, place.size)?;
        let mut reader = ReaderBuilder::new()
            .delimiter(self.separator)
            .has_headers(false)
            .flexible(true)
            .from_reader(&bytes[..]);
        let mut record = ByteRecord::new();
        reader.read_byte_record(&mut record).map_err(|problem| {
            Error::content(&name, problem, "the file has changed since it was opened")
        })?;
        let (image, words) = self
            .columns
            .read(&name, &record)
            .map_err(|(_, error)| error)?;
        Ok((name, image, words))
    }
}

impl Columns {
    fn of(what: &str, heading: &ByteRecord) -> Result<Columns> {
        let names: Vec<String> = heading
            .iter()
            .map(|name| {
                String::from_utf8_lossy(name)
                    .trim_start_matches('\u{feff}')
                    .trim()
                    .to_lowercase()
            })
            .collect();
        let find = |wanted: &[&str]| {
            let of = |name: &&str| names.iter().position(|other| other == name);
            wanted.iter().find_map(of)
        };
        let image = find(&["image", "image_path", "file_name", "filepath", "path"]);
        let caption = find(&["caption", "text", "answer", "title"]);
        match (image, caption) {
            (Some(image), Some(caption)) => Ok(Columns {
                image,
                caption,
                question: find(&["question"]),
            }),
            _ => Err(Error::content(
                what,
                format!("its heading has the columns {}", names.join(", ")),
                "name a column image, and one caption, or two question and answer",
            )),
        }
    }

    fn read(
        &self,
        name: &str,
        record: &ByteRecord,
    ) -> Result<(ImageOfRow, RecordText), (Reason, Error)> {
        let bad = |reason: Reason, problem: &str, remedy: &str| {
            (reason, Error::content(name, problem, remedy))
        };
        let text = |column: usize| {
            let field = record.get(column).unwrap_or_default();
            std::str::from_utf8(field)
                .map_err(|_| bad(Reason::BadRecord, "it is not UTF-8", "save it as UTF-8"))
        };
        let field = text(self.image)?.trim();
        if field.is_empty() {
            return Err(bad(
                Reason::NoImage,
                "it names no image",
                "add its path as image",
            ));
        }
        let image = if field.len() > LONGEST_PATH {
            let bytes = STANDARD.decode(field).map_err(|_| {
                bad(
                    Reason::BadImage,
                    "its image is no base64",
                    "write the file anew",
                )
            })?;
            ImageOfRow::Bytes(bytes)
        } else if is_own_file(field) {
            ImageOfRow::Path(field.to_owned())
        } else {
            return Err(bad(
                Reason::RefusedEntry,
                "its image is not a path below the table's folder",
                "put table and images under one folder and write relative paths",
            ));
        };
        let words = match self.question {
            Some(question) => {
                records::question_and_answer(name, text(question)?, text(self.caption)?)?
                    .for_images(name, 1)?
            }
            None => RecordText::caption(records::trimmed(name, text(self.caption)?)?),
        };
        Ok((image, words))
    }
}

/// Reads a table once, checking every row; images are looked for when they are drawn.
pub(crate) fn open(path: &Path, separator: u8, skips: &SkipLog) -> Result<Table> {
    let source = InputFile::open(path)?;
    let what = path.display().to_string();
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(1 << 16)
        .from_reader(file);
    let broken = |number: u64, problem: &dyn std::fmt::Display| {
        Error::content(
            format!("{what}, row {number}"),
            problem,
            "write the table anew, with fields that hold separators or line breaks in quotes",
        )
    };
    let mut record = ByteRecord::new();
    if !reader
        .read_byte_record(&mut record)
        .map_err(|e| broken(0, &e))?
    {
        return Err(Error::content(
            &what,
            "it is empty",
            "give a table with a heading",
        ));
    }
    let columns = Columns::of(&what, &record)?;
    let width = record.len();
    let mut rows = Vec::new();
    for number in 1.. {
        let offset = reader.position().byte();
        if !reader
            .read_byte_record(&mut record)
            .map_err(|e| broken(number, &e))?
        {
            break;
        }
        let size = reader.position().byte() - offset;
        let name = format!("{what}, row {number}");
        if size > MAX_ROW_BYTES {
            return Err(broken(
                number,
                &format!("the row has more than {MAX_ROW_BYTES} bytes"),
            ));
        }
        let outcome = if record.len() == width {
            columns.read(&name, &record).map(|_| ())
        } else {
            let problem = format!("it has {} fields, the heading {width}", record.len());
            Err((
                Reason::BadRecord,
                Error::content(&name, problem, "give every row the same fields"),
            ))
        };
        match outcome {
            Ok(()) => {
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
    Ok(Table {
        source,
        separator,
        columns,
        folder: path.parent().map(Path::to_owned).unwrap_or_default(),
        rows,
    })
}
