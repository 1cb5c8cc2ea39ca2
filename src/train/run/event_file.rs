//! TensorBoard's event files: each record is its length, a checksum of that, an `Event` message, and a checksum of that
//! (`tensorboard/compat/proto/event.proto`, TFRecord framing). Only scalars are written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use keel_base::error::{Error, Result};

/// One event file of a run; every process that continues the run adds a file of its own.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates a file in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn create(folder: &Path) -> Result<EventFile> {
        let name = format!(
            "events.out.tfevents.{}.{}.keel",
            seconds() as u64,
            std::process::id()
        );
        let path = folder.join(name);
        let file = File::create(&path).map_err(|e| Error::io(&path, "create the file", e))?;
        let mut events = EventFile { path, file };
        let mut event = event(None);
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
        let mut event = event(Some(step));
        bytes_field(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_checksum(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked_checksum(event).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// An `Event` with its time and step.
fn event(step: Option<u64>) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(seconds().to_le_bytes());
    if let Some(step) = step {
        event.push(2 << 3);
        varint(&mut event, step);
    }
    event
}

/// Seconds since 1970.
fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
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
