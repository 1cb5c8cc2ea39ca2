//! Rows of a Parquet file as Hugging Face's `datasets` writes them: images as structs of `bytes` and `path`, words as
//! strings, lists and structs, which become the JSON object that the other formats hold and are read as that.
//!
//! Only where the rows lie is kept. A row is read at random: pages before it are passed over by their headers, so that it
//! costs one page of each column. pyarrow ends a page of images with its group, and in columns of lists what lies before the
//! row in its group is unpacked too: groups of a hundred rows, as `datasets` writes them, are read fast.

mod column;
mod damage;
mod leaf;
mod pages;
mod source;

use std::path::{Path, PathBuf};

use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value, json};

use self::column::Column;
use self::damage::{Problem, broken, guarded};
use self::leaf::{Field, Leaf, leaves};
use self::source::Source;
use super::image_place::ImagePlace;
use super::limits::MAX_TEXT_BYTES;
use super::records::{self, RecordText};
use super::remote;
use super::skips::{Note, Reason, SkipLog};
use super::turns;
use keel_base::error::{Error, Result};
use keel_stores::Object;

/// Columns that images are looked for in, best first.
const IMAGES: [&str; 9] = [
    "image",
    "images",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_path",
    "file_name",
    "file_names",
];

/// Columns that words are looked for in.
const WORDS: [&str; 9] = [
    "caption",
    "text",
    "question",
    "answer",
    "answers",
    "system",
    "conversations",
    "messages",
    "texts",
];

/// Rows of a file; more than any data set keeps in one.
const MAX_ROWS: i64 = 1 << 28;

/// Rows after which it is asked whether too many are bad: a file can claim more than anybody would wait for.
const CHECKED: u32 = 4096;

/// An opened file.
pub(crate) struct Parquet {
    name: String,
    source: Source,
    file: SerializedFileReader<Source>,
    columns: Columns,
    /// Rows before each group.
    before: Vec<i64>,
    /// What images' paths are relative to.
    pub folder: PathBuf,
    /// The usable rows.
    pub rows: Vec<RowOfGroup>,
}

impl std::fmt::Debug for Parquet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Parquet({}, {} rows)",
            self.name,
            self.rows.len()
        )
    }
}

/// Where a row lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowOfGroup {
    group: u32,
    row: u32,
}

/// Which columns say what.
#[derive(Debug)]
struct Columns {
    words: Vec<Leaf>,
    image_bytes: Option<Leaf>,
    image_path: Option<Leaf>,
}

/// What the columns say in one row.
struct Row<'a> {
    words: Vec<(&'a Leaf, Field)>,
    /// Of images.
    paths: Vec<ByteArray>,
    /// Of images' files.
    bytes: Vec<ByteArray>,
}

/// The words of a row with its images, if any.
type Read = std::result::Result<(Vec<ImagePlace>, RecordText), Problem>;

impl Parquet {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object that the file is, where it is one.
    pub fn object(&self) -> Option<&Object> {
        self.source.object()
    }

    /// Reads a row again, with the name that messages call it by.
    pub fn row(&self, place: RowOfGroup) -> Result<(String, Vec<ImagePlace>, RecordText)> {
        let name = self.name_of(place);
        let read = guarded(&name, || {
            let mut cursor = Cursor::open(self, place.group as usize, &name, true)?;
            cursor.skip(&name, place.row as usize)?;
            cursor.next(&name)
        });
        let (images, words) = read
            .and_then(|row| understand(&name, row, true))
            .map_err(|(_, error)| self.source.failed().unwrap_or(error))?;
        Ok((name, images, words))
    }

    /// Rows are counted from 1 through the file's groups.
    pub fn name_of(&self, place: RowOfGroup) -> String {
        let number = self.before[place.group as usize] + i64::from(place.row) + 1;
        format!("{}, row {number}", self.name)
    }

    /// Checks the words of every row of a group; images are looked at when they are drawn.
    fn consider(&mut self, group: usize, skips: &SkipLog) -> Result<()> {
        let rows = self.file.metadata().row_group(group).num_rows();
        let what = self.name.clone();
        let paths_alone = self.columns.image_bytes.is_none();
        let mut found = Vec::new();
        let walked = guarded(&what, || {
            let mut cursor = Cursor::open(self, group, &what, false)?;
            // One cursor over all rows of the group: to seek each row anew would unpack its pages once for every row in them.
            for row in 0..rows as u32 {
                let place = RowOfGroup {
                    group: group as u32,
                    row,
                };
                let name = self.name_of(place);
                match understand(&name, cursor.next(&name)?, paths_alone) {
                    Ok((_, words)) => {
                        skips.count_good();
                        if words.is_trimmed {
                            skips.count_note(Note::Trimmed, &name);
                        }
                        found.push(place);
                    }
                    Err((reason, error)) => skips.count_bad(&what, reason, error),
                }
                if row % CHECKED == CHECKED - 1 {
                    let checked = skips.check_so_far();
                    checked.map_err(|error| (Reason::BadRecord, error))?;
                }
            }
            Ok(())
        });
        self.rows.extend(found);
        walked.map_err(|(_, error)| self.source.failed().unwrap_or(error))
    }
}

impl Columns {
    fn of(what: &str, leaves: Vec<Leaf>) -> Result<Columns> {
        let roots: Vec<&str> = leaves.iter().map(Leaf::root).collect();
        let has = |wanted: &str| roots.contains(&wanted);
        let image = IMAGES.into_iter().find(|name| has(name));
        let speaks = [
            "caption",
            "text",
            "answer",
            "answers",
            "conversations",
            "messages",
            "texts",
        ];
        let talks = ["conversations", "messages", "texts"];
        let says_enough = match image {
            Some(_) => speaks.into_iter().any(has),
            None => talks.into_iter().any(has),
        };
        if !says_enough {
            let mut names = roots;
            names.dedup();
            return Err(Error::content(
                what,
                format!("it has the columns {}", names.join(", ")),
                "name a column image, and one caption, conversations or messages, or two question and answer (test splits mostly have no answers)",
            ));
        }
        let mut columns = Columns {
            words: Vec::new(),
            image_bytes: None,
            image_path: None,
        };
        for leaf in leaves {
            if Some(leaf.root()) == image {
                if !leaf.is_bytes {
                    continue;
                }
                let place = match leaf.last_key() {
                    "path" => &mut columns.image_path,
                    _ if leaf.is_text => &mut columns.image_path,
                    _ => &mut columns.image_bytes,
                };
                *place = Some(leaf);
            } else if WORDS.contains(&leaf.root()) {
                if leaf.is_bytes {
                    columns.words.push(leaf);
                } else if leaf.depth() == 1 {
                    return Err(Error::content(
                        what,
                        format!("its column {} is not text", leaf.root()),
                        "write it as strings",
                    ));
                } else if turns::SUPERVISION.contains(&leaf.last_key()) {
                    // Only strings are read from Parquet; to pass over these would train on what is not to be learnt.
                    return Err(Error::content(
                        what,
                        format!(
                            "the {} of its {} says what is learnt, which is read from JSON only",
                            leaf.last_key(),
                            leaf.root()
                        ),
                        "write the file as .jsonl, or leave that field out",
                    ));
                }
            } else if records::REFUSED_KEYS.contains(&leaf.root()) {
                if leaf.is_text && leaf.depth() == 1 {
                    // Refused row by row, where it says something.
                    columns.words.push(leaf);
                } else {
                    return Err(Error::content(
                        what,
                        format!("it has {}, which cannot be shown to the model", leaf.root()),
                        "leave the column out",
                    ));
                }
            }
        }
        if image.is_some() && columns.image_bytes.is_none() && columns.image_path.is_none() {
            return Err(Error::content(
                what,
                format!(
                    "its column {} holds neither files nor paths",
                    image.unwrap_or_default()
                ),
                "write images as structs of bytes and path, as datasets does",
            ));
        }
        if columns.words.is_empty() {
            let problem = "its words are not text";
            return Err(Error::content(what, problem, "write them as strings"));
        }
        Ok(columns)
    }
}

/// Reads rows of one group one after the other.
struct Cursor<'a> {
    words: Vec<Column<'a>>,
    image_bytes: Option<Column<'a>>,
    image_path: Option<Column<'a>>,
}

impl<'a> Cursor<'a> {
    /// Without the images' bytes where only words are wanted.
    fn open(
        file: &'a Parquet,
        group: usize,
        name: &str,
        with_bytes: bool,
    ) -> std::result::Result<Cursor<'a>, Problem> {
        let reader = file.file.get_row_group(group);
        let reader = reader.map_err(|e| broken(name, e))?;
        let column = |leaf: &'a Leaf| Column::open(&*reader, leaf, name);
        let columns = &file.columns;
        let bytes = columns.image_bytes.as_ref().filter(|_| with_bytes);
        let words = columns.words.iter().map(column);
        Ok(Cursor {
            words: words.collect::<std::result::Result<_, Problem>>()?,
            image_bytes: bytes.map(column).transpose()?,
            image_path: columns.image_path.as_ref().map(column).transpose()?,
        })
    }

    fn skip(&mut self, name: &str, rows: usize) -> std::result::Result<(), Problem> {
        let images = self.image_bytes.iter_mut().chain(&mut self.image_path);
        let mut columns = self.words.iter_mut().chain(images);
        columns.try_for_each(|column| column.skip(name, rows))
    }

    /// Every column goes on by a row, whatever the row is worth.
    fn next(&mut self, name: &str) -> std::result::Result<Row<'a>, Problem> {
        let words = self.words.iter_mut();
        let words = words.map(|column| Ok((column.leaf, column.next(name)?)));
        let words = words.collect::<std::result::Result<_, Problem>>()?;
        let image = |column: &mut Option<Column<'_>>| match column {
            Some(column) => Ok(column.next(name)?.values),
            None => Ok(Vec::new()),
        };
        Ok(Row {
            words,
            paths: image(&mut self.image_path)?,
            bytes: image(&mut self.image_bytes)?,
        })
    }
}

impl Row<'_> {
    /// The words as the JSON formats spell them.
    fn object(&self, name: &str) -> std::result::Result<Map<String, Value>, Problem> {
        let values = self.words.iter().flat_map(|(_, field)| &field.values);
        let text_bytes: u64 = values.map(|value| value.len() as u64).sum();
        if text_bytes > MAX_TEXT_BYTES {
            let problem =
                format!("its words have {text_bytes} bytes, the limit is {MAX_TEXT_BYTES}");
            let error = Error::content(name, problem, "shorten them");
            return Err((Reason::TooLarge, error));
        }
        let mut object = Map::new();
        for (leaf, field) in &self.words {
            leaf.write(field, &mut object).map_err(|problem| {
                let error = Error::content(name, problem, "save it as UTF-8");
                (Reason::BadRecord, error)
            })?;
        }
        records::drop_nulls(&mut object);
        // The Cauldron's spelling: turns of user and assistant.
        if let Some(Value::Array(texts)) = object.remove("texts") {
            let turns = texts.iter().flat_map(|turn| {
                [("human", &turn["user"]), ("gpt", &turn["assistant"])]
                    .map(|(from, value)| json!({"from": from, "value": value}))
            });
            object.insert("conversations".into(), turns.collect());
        }
        Ok(object)
    }

    fn images(&self, name: &str) -> std::result::Result<Vec<ImagePlace>, Problem> {
        // Bytes win: beside them stands the name that the file once had.
        if !self.bytes.is_empty() {
            let files = self.bytes.iter();
            return Ok(files
                .map(|file| ImagePlace::Bytes(file.data().to_vec()))
                .collect());
        }
        let paths = self.paths.iter();
        let paths = paths.map(|path| String::from_utf8_lossy(path.data()));
        let paths = paths.filter(|path| !path.is_empty());
        paths
            .map(|path| ImagePlace::of(name, "file", &path))
            .collect()
    }
}

/// A row's words and images; those that were looked for must be there, or not be asked about.
fn understand(name: &str, row: Row<'_>, looked_for: bool) -> Read {
    let object = row.object(name)?;
    let images = if looked_for {
        row.images(name)?
    } else {
        Vec::new()
    };
    let may_be_text = records::is_conversation(&object) && !records::has_placeholder(&object);
    if looked_for && images.is_empty() && !may_be_text {
        let error = Error::content(name, "it has no image", "add one, or leave the row out");
        return Err((Reason::NoImage, error));
    }
    let words = records::words_of_object(name, &object)?;
    let words = if looked_for {
        words.for_images(name, images.len())?
    } else {
        words
    };
    Ok((images, words))
}

/// Opens a file and checks the words of every row.
pub(crate) fn open(path: &Path, skips: &SkipLog) -> Result<Parquet> {
    let name = remote::name_of(path);
    let source = Source::open(path)?;
    let opened = guarded(&name, || {
        SerializedFileReader::new(source.clone()).map_err(|e| broken(&name, e))
    });
    let file = opened.map_err(|(_, error)| source.failed().unwrap_or(error))?;
    let metadata = file.metadata();
    let mut total = 0i64;
    let mut before = Vec::new();
    for group in metadata.row_groups() {
        before.push(total);
        let rows = group.num_rows();
        total = total.saturating_add(rows);
        if rows < 0 || total > MAX_ROWS {
            let (_, error) = broken(&name, format!("it claims more than {MAX_ROWS} rows"));
            return Err(error);
        }
    }
    let groups = before.len();
    let schema = metadata.file_metadata().schema_descr();
    let columns = Columns::of(&name, leaves(schema.root_schema()))?;
    let mut parquet = Parquet {
        name,
        source,
        file,
        columns,
        before,
        folder: remote::folder_of(path),
        rows: Vec::new(),
    };
    for group in 0..groups {
        parquet.consider(group, skips)?;
    }
    Ok(parquet)
}
