//! TensorBoard's event files: each record is its length, a checksum of that, an `Event` message, and a checksum of that
//! (`tensorboard/compat/proto/event.proto`, TFRecord framing). Only scalars are written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checkpoint::{Disk, OpenFile, uninterrupted, write_all};
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_base::files::read_own;

/// One event file of a run; every process that continues the run adds a file of its own.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: Box<dyn OpenFile>,
    clock: Clock,
    /// The time of the last record, since 1970.
    last: Duration,
}

impl EventFile {
    /// Creates a file in `folder`, named after those that are there: TensorBoard reads them in the order of their names, and
    /// never turns back. A name begins with a time, and a clock may have been set back since the last was made.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file or folder.
    pub fn create(disk: &dyn Disk, folder: &Path, clock: Clock) -> Result<EventFile> {
        let names = names_in(folder)?;
        let newest = names.iter().filter_map(|name| second_of(name)).max();
        let after = newest.map_or(0, |newest| newest.saturating_add(1));
        let last = clock.since_1970().max(Duration::from_secs(after));
        let (second, process) = (last.as_secs(), std::process::id());
        let path = folder.join(format!("{PREFIX}{second:010}.{process}{SUFFIX}"));
        let file = uninterrupted(|| disk.append(&path));
        let file = file.map_err(|e| Error::io(&path, "create the file", e))?;
        let mut events = EventFile {
            path,
            file,
            clock,
            last,
        };
        let mut event = events.event(None);
        bytes_field(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Appends the numbers of `step`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, number) in scalars {
            let mut value = Vec::new();
            bytes_field(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((*number as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &value);
        }
        let mut event = self.event(Some(step));
        bytes_field(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Cuts every event file of `folder` back to where `done` steps of `stage` were done: what comes after them in time is
    /// about to be done again, and TensorBoard would show both.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn cut_back(disk: &dyn Disk, folder: &Path, stage: &str, done: u64) -> Result<()> {
        for name in names_in(folder)? {
            let path = folder.join(name);
            let cut = || -> std::io::Result<()> {
                match first_beyond(&read_own(&path)?, stage, done) {
                    Some(end) => uninterrupted(|| disk.shorten(&path, end as u64)),
                    None => Ok(()),
                }
            };
            cut().map_err(|e| Error::io(&path, "shorten", e))?;
        }
        Ok(())
    }

    /// An `Event` with its time and step. The time is never before that of the last, whatever the clock says.
    fn event(&mut self, step: Option<u64>) -> Vec<u8> {
        self.last = self.last.max(self.clock.since_1970());
        let mut event = vec![1 << 3 | 1];
        event.extend(self.last.as_secs_f64().to_le_bytes());
        if let Some(step) = step {
            event.push(2 << 3);
            varint(&mut event, step);
        }
        event
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_checksum(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked_checksum(event).to_le_bytes());
        write_all(self.file.as_mut(), &record).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// How the names of event files begin, by which TensorBoard knows them, and end.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".keel";

/// The names of the event files in a folder.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.map_err(|e| Error::io(folder, "read the folder", e))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names
        .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
        .collect())
}

/// The second, since 1970, in the name of an event file.
fn second_of(name: &str) -> Option<u64> {
    let (second, _) = name.strip_prefix(PREFIX)?.split_once('.')?;
    second.parse().ok()
}

/// Where the first record with a number of `stage` after more than `done` steps begins; nothing where there is none. What cannot
/// be read as a record ends the search.
fn first_beyond(bytes: &[u8], stage: &str, done: u64) -> Option<usize> {
    // The first number of every report of steps, and of no evaluation.
    let tag = format!("{stage}/loss");
    // Of every validation. That before the first step comes again with the stage.
    let of_validation = format!("{stage}/validation/loss");
    let mut rest = bytes;
    while let Some((length, _)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let end = length.checked_add(12)?;
        let event = rest.get(12..end)?;
        let (tag_of, step) = (first_tag(event), step_of(event));
        let is_step = tag_of == Some(tag.as_bytes()) && step > done;
        let is_validation = tag_of == Some(of_validation.as_bytes());
        if is_step || is_validation && (step > done || done == 0) {
            return Some(bytes.len() - rest.len());
        }
        rest = rest.get(end + 4..)?;
    }
    None
}

/// The step of an event; 0 where it has none.
fn step_of(event: &[u8]) -> u64 {
    let mut fields = Fields(event);
    let step = fields.find_map(|(field, value)| match (field, value) {
        (2, FieldValue::Number(step)) => Some(step),
        _ => None,
    });
    step.unwrap_or(0)
}

/// The tag of an event's first number.
fn first_tag(event: &[u8]) -> Option<&[u8]> {
    let within = |message, wanted| {
        Fields(message).find_map(|(field, value)| match value {
            FieldValue::Bytes(bytes) if field == wanted => Some(bytes),
            _ => None,
        })
    };
    within(within(within(event, 5)?, 1)?, 1)
}

/// What a field holds, as far as it is of interest here.
enum FieldValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width.
    Fixed,
}

/// The fields of a message of the protocol buffers' wire format. Ends where it cannot be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, FieldValue<'a>);

    fn next(&mut self) -> Option<(u64, FieldValue<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => FieldValue::Number(self.varint()?),
            1 => self.take(8).map(|_| FieldValue::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                FieldValue::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| FieldValue::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field of bytes, text or a message.
fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// CRC-32C turned by 15 bits and moved, so that checksums of data with checksums in it stay strong (TFRecord).
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}
