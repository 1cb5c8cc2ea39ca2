//! Pairs listed in a file of JSON: one object a line, or one list of objects as LLaVA's. Only the places of records are kept;
//! images are paths below a folder.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::archive::InputFile;
use super::files::open_reader;
use super::image_place::ImagePlace;
use super::limits::MAX_RECORD_BYTES;
use super::record_text::{Problem, RecordText, bad};
use super::records;
use super::remote;
use super::skips::{Note, Reason, SkipLog};
use super::turns;
use keel_base::error::{Error, Result};

/// An opened list.
#[derive(Debug)]
pub(crate) struct Lines {
    source: InputFile,
    /// What a record is called in messages.
    unit: &'static str,
    /// What the images' paths are relative to.
    pub folder: PathBuf,
    /// The usable records.
    pub places: Vec<LinePlace>,
}

/// Where a record lies.
#[derive(Debug)]
pub(crate) struct LinePlace {
    offset: u64,
    size: u64,
    /// Counted from 1.
    number: u64,
}

/// A record understood.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its images: files, or paths below the list's folder; none where the record is text alone.
    pub images: Vec<ImagePlace>,
    pub words: RecordText,
}

impl Lines {
    fn new(path: &Path, unit: &'static str, folder: PathBuf) -> Result<Lines> {
        Ok(Lines {
            source: InputFile::open(path)?,
            unit,
            folder,
            places: Vec::new(),
        })
    }

    /// What messages call a record.
    fn name_of(&self, place: &LinePlace) -> String {
        format!("{}, {} {}", self.name(), self.unit, place.number)
    }

    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// The file or object that the list is.
    pub fn source(&self) -> &InputFile {
        &self.source
    }

    /// Reads a record again, with the name that messages call it by.
    pub fn record(&self, place: &LinePlace) -> Result<(String, Record)> {
        let name = self.name_of(place);
        let bytes = self.source.read(place.offset, place.size)?;
        let record = parse(&name, &bytes).map_err(|(_, error)| error)?;
        Ok((name, record))
    }

    /// Keeps a record's place if it is usable.
    fn consider(&mut self, place: LinePlace, bytes: &[u8], skips: &SkipLog) {
        let name = self.name_of(&place);
        match parse(&name, bytes) {
            Ok(record) => {
                skips.count_good();
                if record.words.is_trimmed {
                    skips.count_note(Note::Trimmed, name);
                }
                self.places.push(place);
            }
            Err((reason, error)) => skips.count_bad(&self.source.name, reason, error),
        }
    }

    /// Counts a record that is longer than any can be.
    fn count_too_long(&self, number: u64, skips: &SkipLog) {
        let unit = self.unit;
        let error = Error::content(
            format!("{}, {unit} {number}", self.name()),
            format!("the {unit} has more than {MAX_RECORD_BYTES} bytes"),
            "leave it out, or keep its images in files of their own",
        );
        skips.count_bad(self.name(), Reason::TooLarge, error);
    }
}

/// Reads a file of lines once, checking every line; images are looked for, below `folder`, when they are drawn.
pub(crate) fn open(path: &Path, folder: PathBuf, skips: &SkipLog) -> Result<Lines> {
    let mut lines = Lines::new(path, "line", folder)?;
    let io = |error| Error::io(remote::name_of(path), "read", error);
    let mut reader = BufReader::new(open_reader(path)?);
    let (mut offset, mut line) = (0, Vec::new());
    for number in 1.. {
        line.clear();
        // No more than the limit is held, however long a line is: what is not text has no line breaks at all.
        let mut size = reader
            .by_ref()
            .take(MAX_RECORD_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(io)? as u64;
        if size == 0 {
            break;
        }
        if size > MAX_RECORD_BYTES {
            lines.count_too_long(number, skips);
            if !line.ends_with(b"\n") {
                size += reader.skip_until(b'\n').map_err(io)? as u64;
            }
        } else if !line.iter().all(u8::is_ascii_whitespace) {
            let place = LinePlace {
                offset,
                size,
                number,
            };
            lines.consider(place, &line, skips);
        }
        offset += size;
    }
    Ok(lines)
}

/// Reads a file of one JSON list once, record by record; never more than one record is held.
pub(crate) fn open_list(path: &Path, folder: PathBuf, skips: &SkipLog) -> Result<Lines> {
    let mut lines = Lines::new(path, "record", folder)?;
    let what = remote::name_of(path);
    let cut = |problem: &str| Error::content(&what, problem, "copy the file anew");
    let io = |error| Error::io(remote::name_of(path), "read", error);
    let mut reader = BufReader::with_capacity(1 << 16, open_reader(path)?);
    let mut walk = ListWalk::default();
    let mut offset = 0;
    let (mut size, mut record) = (0, Vec::new());
    // Byte by byte instead of by a JSON parser: the parser would hold the list as a whole, or stop at its first bad record.
    loop {
        let buffer = reader.fill_buf().map_err(io)?;
        if buffer.is_empty() {
            break;
        }
        for byte in buffer {
            match walk.step(*byte) {
                Walk::Between => {}
                Walk::Inside => {
                    size += 1;
                    // What is longer is walked over to its end, where it is counted, but not held.
                    if size <= MAX_RECORD_BYTES {
                        record.push(*byte);
                    }
                }
                Walk::Ended {
                    is_last_byte_inside,
                } => {
                    if is_last_byte_inside {
                        size += 1;
                        record.push(*byte);
                    }
                    let end = offset + u64::from(is_last_byte_inside);
                    if size > MAX_RECORD_BYTES {
                        lines.count_too_long(walk.number, skips);
                    } else {
                        let place = LinePlace {
                            offset: end - size,
                            size,
                            number: walk.number,
                        };
                        lines.consider(place, &record, skips);
                    }
                    size = 0;
                    record.clear();
                }
                Walk::Stray => return Err(cut("it is no JSON list of objects")),
            }
            offset += 1;
        }
        let read = buffer.len();
        reader.consume(read);
    }
    match walk.state {
        ListState::After => Ok(lines),
        ListState::Before => Err(cut("it is empty")),
        _ => Err(cut("its list is cut short")),
    }
}

/// Where in a list the walk stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ListState {
    #[default]
    Before,
    /// A record or the end comes next.
    Open,
    Inside,
    /// A comma or the end comes next.
    Closed,
    After,
}

/// Finds the records of a list byte by byte: only brackets, strings and escapes matter.
#[derive(Debug, Default)]
struct ListWalk {
    state: ListState,
    depth: u32,
    in_string: bool,
    escaped: bool,
    number: u64,
}

enum Walk {
    Between,
    Inside,
    /// A record has ended, with this byte or before it.
    Ended {
        is_last_byte_inside: bool,
    },
    /// This byte cannot stand here.
    Stray,
}

impl ListWalk {
    fn step(&mut self, byte: u8) -> Walk {
        match self.state {
            _ if self.state != ListState::Inside && byte.is_ascii_whitespace() => Walk::Between,
            ListState::Before => match byte {
                // A byte-order mark.
                0xef | 0xbb | 0xbf => Walk::Between,
                b'[' => {
                    self.state = ListState::Open;
                    Walk::Between
                }
                _ => Walk::Stray,
            },
            ListState::Open => match byte {
                b']' => {
                    self.state = ListState::After;
                    Walk::Between
                }
                b',' | b'}' => Walk::Stray,
                _ => {
                    self.state = ListState::Inside;
                    self.number += 1;
                    self.inside(byte)
                }
            },
            ListState::Inside => self.inside(byte),
            ListState::Closed => match byte {
                b',' => {
                    self.state = ListState::Open;
                    Walk::Between
                }
                b']' => {
                    self.state = ListState::After;
                    Walk::Between
                }
                _ => Walk::Stray,
            },
            ListState::After => Walk::Stray,
        }
    }

    fn inside(&mut self, byte: u8) -> Walk {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Walk::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = ListState::Closed;
                    return Walk::Ended {
                        is_last_byte_inside: true,
                    };
                }
            }
            // A record that is a bare word or number ends where the list goes on.
            b',' | b']' if self.depth == 0 => {
                self.state = if byte == b',' {
                    ListState::Open
                } else {
                    ListState::After
                };
                return Walk::Ended {
                    is_last_byte_inside: false,
                };
            }
            _ => {}
        }
        Walk::Inside
    }
}

/// Keys that name a record's images, best first.
const IMAGES: [&str; 6] = [
    "image",
    "file_name",
    "file_names",
    "images",
    "image_path",
    "image_file_name",
];

fn parse(name: &str, bytes: &[u8]) -> Result<Record, Problem> {
    let object = records::object(name, bytes)?;
    let images = images_of(name, &object)?;
    let may_be_text = records::is_conversation(&object) && !records::has_placeholder(&object);
    if images.is_empty() && !may_be_text {
        let error = Error::content(name, "it names no image", "add its path as image");
        return Err((Reason::NoImage, error));
    }
    let words = records::words_of_object(name, &object)?;
    Ok(Record {
        words: words.for_images(name, images.len())?,
        images,
    })
}

/// The images of a record: those that it names, else those in the parts of its messages.
fn images_of(name: &str, object: &Map<String, Value>) -> Result<Vec<ImagePlace>, Problem> {
    // Lists that mix images and text write an empty name where there is no image.
    let named = |key: &&str| object.get(*key).filter(|value| !records::is_blank(value));
    let paths: Vec<&str> = match IMAGES.iter().find_map(named) {
        None => turns::images_in_messages(object),
        Some(value) => {
            let values = value
                .as_array()
                .map_or(std::slice::from_ref(value), |list| list);
            let paths = values.iter().map(Value::as_str).collect::<Option<_>>();
            paths.ok_or_else(|| {
                let problem = "its image is neither a path nor a list of paths";
                bad(name, problem, "give paths as strings")
            })?
        }
    };
    let places = paths.into_iter();
    places
        .map(|path| ImagePlace::of(name, "list", path))
        .collect()
}
