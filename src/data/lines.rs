//! Pairs listed in a JSON-lines file: one object a line, with the path of a picture below the list's own folder.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use super::archive::Source;
use super::pairs::MAX_TEXT_BYTES;
use super::records::{self, Words};
use super::skips::{Reason, SkipLog};
use crate::error::{Error, Result};

/// An opened list.
#[derive(Debug)]
pub(crate) struct Lines {
    source: Source,
    /// What the pictures' paths are relative to.
    pub folder: PathBuf,
    /// The usable lines.
    pub places: Vec<LinePlace>,
}

/// Where a line lies.
#[derive(Debug)]
pub(crate) struct LinePlace {
    offset: u64,
    size: u64,
    /// Counted from 1.
    number: u64,
}

/// A line understood.
#[derive(Debug)]
pub(crate) struct Record {
    /// The picture's path, relative to the list's folder.
    pub picture: String,
    pub words: Words,
}

impl Lines {
    pub fn name(&self) -> &str {
        &self.source.name
    }

    /// Reads a line again, with the name that messages call it by.
    pub fn record(&self, place: &LinePlace) -> Result<(String, Record)> {
        let name = line_name(self.name(), place.number);
        let bytes = self.source.read(place.offset, place.size)?;
        let record = parse(&name, &bytes).map_err(|(_, error)| error)?;
        Ok((name, record))
    }
}

/// Reads the list once, checking every line; pictures are looked for when they are drawn.
pub(crate) fn open(path: &Path, skips: &SkipLog) -> Result<Lines> {
    let source = Source::open(path)?;
    let io = |error| Error::io(path, "read", error);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut places, mut offset, mut line) = (Vec::new(), 0, Vec::new());
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
        let name = line_name(&source.name, number);
        if size > MAX_TEXT_BYTES {
            return Err(Error::content(
                name,
                format!("the line has more than {MAX_TEXT_BYTES} bytes"),
                "a .jsonl file has one JSON object a line; a JSON list must be split into lines",
            ));
        }
        let blank = line.iter().all(u8::is_ascii_whitespace);
        if !blank {
            match parse(&name, &line) {
                Ok(_) => {
                    skips.count_good();
                    places.push(LinePlace {
                        offset,
                        size,
                        number,
                    });
                }
                Err((reason, error)) => skips.count_bad(&source.name, reason, error),
            }
        }
        offset += size;
    }
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    Ok(Lines {
        source,
        folder,
        places,
    })
}

fn line_name(file: &str, number: u64) -> String {
    format!("{file}, line {number}")
}

fn parse(name: &str, bytes: &[u8]) -> Result<Record, (Reason, Error)> {
    let object = records::object(name, bytes)?;
    let value = ["image", "file_name"]
        .iter()
        .find_map(|key| object.get(*key));
    let problem = |reason: Reason, problem: &str, remedy: &str| {
        (reason, Error::content(name, problem, remedy))
    };
    let picture = match value {
        None => {
            return Err(problem(
                Reason::NoPicture,
                "it names no image",
                "add its path as image",
            ));
        }
        Some(value) => value.as_str().ok_or_else(|| {
            problem(
                Reason::BadRecord,
                "its image is not one path",
                "give one path as a string",
            )
        })?,
    };
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if picture.is_empty() || !Path::new(picture).components().all(inside) {
        return Err(problem(
            Reason::RefusedEntry,
            "its image is not a path below the list's folder",
            "put list and pictures under one folder and write relative paths",
        ));
    }
    Ok(Record {
        picture: picture.to_owned(),
        words: records::words_of_object(name, &object)?,
    })
}
