//! Benchmark files in VLMEvalKit's layout: a table separated by tabs with `index`, `image` (base64, or the index of the row
//! whose image it shares), `question`, options `A`, `B`, …, `answer`, and, where there are, `hint` and `category`. Read
//! row by row; of what has been read only the places are kept, where images that other rows share are found again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use csv::{Position, ReaderBuilder, StringRecord};

use super::files::open_file;
use crate::images::image::{Image, ImageLimits};
use keel_base::error::{Error, Result};

/// Text up to this long in the column of images is the index of another row (VLMEvalKit takes the same length).
const LONGEST_INDEX: usize = 64;
/// Letters of options.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// One question of a benchmark.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BenchmarkItem {
    /// Its index in the file.
    pub index: String,
    /// The image's file.
    pub image: Arc<[u8]>,
    /// What helps.
    pub hint: Option<String>,
    /// What is asked.
    pub question: String,
    /// Letters and texts of the options; none for open questions.
    pub options: Vec<(char, String)>,
    /// The right answer: a letter where there are options.
    pub answer: String,
    /// What it belongs to; empty where the file does not say.
    pub category: String,
}

impl BenchmarkItem {
    /// The image.
    ///
    /// # Errors
    /// [`Error::Content`] naming the row.
    pub fn image(&self, file: &str) -> Result<Image> {
        let name = format!("{file}, index {}", self.index);
        Image::decode(&name, &self.image, &ImageLimits::default())
    }
}

/// A benchmark file that is being read.
pub struct Benchmark {
    name: String,
    records: csv::StringRecordsIntoIter<std::fs::File>,
    columns: HashMap<String, usize>,
    /// The file once more, for images that rows share with rows before them.
    again: csv::Reader<std::fs::File>,
    /// Where the row with the image lies, by index.
    seen: HashMap<String, Position>,
    /// The image that was shown last: rows that share one mostly follow each other.
    last: Option<(Position, Arc<[u8]>)>,
    row: u64,
}

impl Benchmark {
    /// Opens a file and checks its heading.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::Content`] naming the columns that it lacks.
    pub fn open(path: &Path) -> Result<Benchmark> {
        let name = path.display().to_string();
        let open = || -> Result<csv::Reader<std::fs::File>> {
            let (file, _) = open_file(path)?;
            Ok(ReaderBuilder::new()
                .delimiter(b'\t')
                .flexible(true)
                .from_reader(file))
        };
        let mut reader = open()?;
        let heading = reader
            .headers()
            .map_err(|problem| Error::content(&name, problem, WANTED))?;
        let columns: HashMap<String, usize> = heading
            .iter()
            .enumerate()
            .map(|(at, column)| (column.trim_start_matches('\u{feff}').trim().to_owned(), at))
            .collect();
        let missing: Vec<&str> = ["index", "image", "question", "answer"]
            .into_iter()
            .filter(|column| !columns.contains_key(*column))
            .collect();
        if !missing.is_empty() {
            let problem = format!("its heading lacks {}", missing.join(", "));
            let remedy = if missing == ["answer"] {
                "a test split without answers cannot be scored: name the split that has them"
            } else {
                WANTED
            };
            return Err(Error::content(&name, problem, remedy));
        }
        Ok(Benchmark {
            name,
            records: reader.into_records(),
            columns,
            again: open()?,
            seen: HashMap::new(),
            last: None,
            row: 0,
        })
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn cell<'r>(&self, record: &'r StringRecord, column: &str) -> &'r str {
        let at = self.columns.get(column);
        let cell = at.and_then(|at| record.get(*at)).unwrap_or("").trim();
        // What pandas writes where there is nothing.
        if cell == "nan" { "" } else { cell }
    }

    fn item(&mut self, record: &StringRecord) -> Result<BenchmarkItem> {
        let index = self.cell(record, "index").to_owned();
        let bad = |problem: String| {
            let what = format!("{}, row {} (index {index:?})", self.name, self.row);
            Error::content(what, problem, "mend the row or leave it out of the file")
        };
        for column in ["index", "question", "answer"] {
            if self.cell(record, column).is_empty() {
                return Err(bad(format!("the column {column} is empty")));
            }
        }
        let decode = |image: &str| -> Result<Arc<[u8]>> {
            let bytes = STANDARD.decode(image);
            let bytes =
                bytes.map_err(|problem| bad(format!("its image is not base64: {problem}")))?;
            Ok(bytes.into())
        };
        let image = self.cell(record, "image");
        let own = record.position().cloned().unwrap_or_else(Position::new);
        let (place, image) = match image.len() {
            0 => return Err(bad("the column image is empty".to_owned())),
            1..=LONGEST_INDEX => {
                let place = self.seen.get(image).cloned().ok_or_else(|| {
                    bad(format!(
                        "no row before it has the index {image:?}, whose image it shares"
                    ))
                })?;
                match &self.last {
                    Some((last, image)) if *last == place => (place, image.clone()),
                    _ => {
                        let shared = found_again(&mut self.again, place.clone());
                        let shared = shared.map_err(|problem| bad(problem.to_string()))?;
                        let image = decode(self.cell(&shared, "image"))?;
                        (place, image)
                    }
                }
            }
            _ => (own, decode(image)?),
        };
        let option = |letter: char| {
            let text = self.cell(record, &letter.to_string());
            (!text.is_empty()).then(|| (letter, text.to_owned()))
        };
        let options: Vec<(char, String)> = LETTERS.chars().map_while(option).collect();
        let answer = self.cell(record, "answer").to_owned();
        let is_letter = options
            .iter()
            .any(|(letter, _)| answer == letter.to_string());
        if !options.is_empty() && !is_letter {
            return Err(bad(format!("its answer {answer:?} is none of its options")));
        }
        let hint = self.cell(record, "hint");
        let item = BenchmarkItem {
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
            question: self.cell(record, "question").to_owned(),
            category: self.cell(record, "category").to_owned(),
            options,
            answer,
            image: image.clone(),
            index: index.clone(),
        };
        self.seen.insert(index, place.clone());
        self.last = Some((place, image));
        Ok(item)
    }
}

/// The row at a place.
fn found_again(
    file: &mut csv::Reader<std::fs::File>,
    place: Position,
) -> Result<StringRecord, csv::Error> {
    let mut record = StringRecord::new();
    file.seek(place)?;
    file.read_record(&mut record)?;
    Ok(record)
}

const WANTED: &str = "give a table separated by tabs with the columns index, image, question, answer, and A, B, … for options";

impl Iterator for Benchmark {
    type Item = Result<BenchmarkItem>;

    fn next(&mut self) -> Option<Result<BenchmarkItem>> {
        let record = self.records.next()?;
        self.row += 1;
        Some(match record {
            Ok(record) => self.item(&record),
            Err(problem) => {
                let what = format!("{}, row {}", self.name, self.row);
                Err(Error::content(
                    what,
                    problem,
                    "mend the row or leave it out of the file",
                ))
            }
        })
    }
}
