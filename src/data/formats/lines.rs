//! Pairs listed in a file of JSON: one object a line, or one list of objects as LLaVA's. Only the places of records are kept;
//! images are paths below a folder.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use super::archive::InputFile;
use super::limits::MAX_TEXT_BYTES;
use super::records::{self, RecordText};
use super::skips::{Reason, SkipLog};
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
    /// The images' paths, relative to the list's folder; none where the record is text alone.
    pub images: Vec<String>,
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
            Ok(_) => {
                skips.count_good();
                self.places.push(place);
            }
            Err((reason, error)) => skips.count_bad(&self.source.name, reason, error),
        }
    }
}

/// Reads a file of lines once, checking every line; images are looked for, below `folder`, when they are drawn.
pub(crate) fn open(path: &Path, folder: PathBuf, skips: &SkipLog) -> Result<Lines> {
    let mut lines = Lines::new(path, "line", folder)?;
    let io = |error| Error::io(path, "read", error);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut offset, mut line) = (0, Vec::new());
    for number in 1.. {
        line.clear();
        let size = reader
            .by_ref()
            .take(MAX_TEXT_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(io)? as u64;
        if size == 0 {
            break;
        }
        if size > MAX_TEXT_BYTES {
            return Err(Error::content(
                format!("{}, line {number}", lines.name()),
                format!("the line has more than {MAX_TEXT_BYTES} bytes"),
                "a .jsonl file has one JSON object a line; call a JSON list .json",
            ));
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
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
    let what = path.display().to_string();
    let cut = |problem: &str| Error::content(&what, problem, "copy the file anew");
    let io = |error| Error::io(path, "read", error);
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
    let mut walk = ListWalk::default();
    let mut offset = 0;
    let mut record = Vec::new();
    loop {
        let buffer = reader.fill_buf().map_err(io)?;
        if buffer.is_empty() {
            break;
        }
        for byte in buffer {
            match walk.step(*byte) {
                Walk::Between => {}
                Walk::Inside => {
                    record.push(*byte);
                    if record.len() as u64 > MAX_TEXT_BYTES {
                        return Err(Error::content(
                            format!("{what}, record {}", walk.number),
                            format!("the record has more than {MAX_TEXT_BYTES} bytes"),
                            "a .json file has one list of objects",
                        ));
                    }
                }
                Walk::Ended {
                    is_last_byte_inside,
                } => {
                    if is_last_byte_inside {
                        record.push(*byte);
                    }
                    let end = offset + u64::from(is_last_byte_inside);
                    let size = record.len() as u64;
                    let place = LinePlace {
                        offset: end - size,
                        size,
                        number: walk.number,
                    };
                    lines.consider(place, &record, skips);
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

/// A path below a folder, not above it and not from the root.
pub(crate) fn lies_below(path: &str) -> bool {
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    !path.is_empty() && Path::new(path).components().all(inside)
}

/// As [`lies_below`], and no address.
pub(crate) fn is_own_file(path: &str) -> bool {
    lies_below(path) && !path.contains("://")
}

fn parse(name: &str, bytes: &[u8]) -> Result<Record, (Reason, Error)> {
    let object = records::object(name, bytes)?;
    let problem = |reason: Reason, problem: &str, remedy: &str| {
        (reason, Error::content(name, problem, remedy))
    };
    let named = ["image", "file_name", "images", "image_path"]
        .iter()
        .find_map(|key| object.get(*key).filter(|value| !value.is_null()));
    let not_paths = || {
        problem(
            Reason::BadRecord,
            "its image is neither a path nor a list of paths",
            "give paths as strings",
        )
    };
    let path = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let images: Vec<String> = match named {
        None => records::images_in_messages(&object),
        Some(value) => {
            let values = value
                .as_array()
                .map_or(std::slice::from_ref(value), |list| list);
            let paths = values.iter().map(path).collect::<Option<_>>();
            paths.ok_or_else(not_paths)?
        }
    };
    let is_conversation = object.contains_key("conversations") || object.contains_key("messages");
    if images.is_empty() && (!is_conversation || records::has_placeholder(&object)) {
        return Err(problem(
            Reason::NoImage,
            "it names no image",
            "add its path as image",
        ));
    }
    if images.iter().any(|path| !is_own_file(path)) {
        return Err(problem(
            Reason::RefusedEntry,
            "its image is not a path below the list's folder",
            "put list and images under one folder and write relative paths",
        ));
    }
    let words = records::words_of_object(name, &object)?;
    Ok(Record {
        words: words.for_images(name, images.len())?,
        images,
    })
}
