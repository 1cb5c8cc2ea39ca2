//! Rows of a table separated by commas, tabs or other letters, with fields in quotes as RFC 4180 has them.
//!
//! Stricter than readers commonly are: a quote that is not closed would otherwise take all rows up to the next quote into one
//! field, without a word. And a row is bounded, whatever stands in the file.

use std::io::{self, BufRead};

use super::limits::MAX_RECORD_BYTES;

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowDefect {
    /// A quote is open at the end of the file.
    OpenQuote,
    /// Letters stand between a closing quote and the next separator.
    AfterQuote,
    /// It is longer than any row can be.
    TooLong,
}

/// One row.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// Without their quotes; none in an empty line.
    pub fields: Vec<Vec<u8>>,
    /// Bytes of the file that it takes, its end among them.
    pub size: u64,
    /// The first thing wrong with it.
    pub defect: Option<RowDefect>,
    /// Whether a field in quotes holds a line break.
    pub has_breaks: bool,
}

/// Where in a row the walk stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowState {
    /// Before the first letter of a field.
    Start,
    /// In a field without quotes.
    Plain,
    /// Behind an opening quote.
    Quoted,
    /// Behind a quote in such a field: the closing one, or the first of two that stand for one.
    Closed,
}

impl Row {
    fn add(&mut self, byte: u8) {
        // What is longer is walked over, not held.
        if self.size > MAX_RECORD_BYTES {
            self.defect = self.defect.or(Some(RowDefect::TooLong));
        } else if let Some(field) = self.fields.last_mut() {
            field.push(byte);
        }
    }

    /// Goes on by one byte that does not end the row.
    fn step(&mut self, byte: u8, separator: u8, state: RowState) -> RowState {
        if self.fields.is_empty() {
            self.fields.push(Vec::new());
        }
        match (state, byte) {
            (RowState::Start, b'"') => RowState::Quoted,
            (RowState::Closed, b'"') => {
                self.add(byte);
                RowState::Quoted
            }
            (RowState::Quoted, b'"') => RowState::Closed,
            (RowState::Quoted, _) => {
                self.has_breaks |= byte == b'\n' || byte == b'\r';
                self.add(byte);
                RowState::Quoted
            }
            (_, byte) if byte == separator => {
                self.fields.push(Vec::new());
                RowState::Start
            }
            (RowState::Closed, _) => {
                self.defect = self.defect.or(Some(RowDefect::AfterQuote));
                RowState::Plain
            }
            (RowState::Start | RowState::Plain, _) => {
                self.add(byte);
                RowState::Plain
            }
        }
    }
}

/// Reads the next row; nothing at the end.
///
/// # Errors
/// The system's, of reading.
pub(super) fn next_row(reader: &mut impl BufRead, separator: u8) -> io::Result<Option<Row>> {
    let mut row = Row::default();
    let mut state = RowState::Start;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            if state == RowState::Quoted {
                row.defect = row.defect.or(Some(RowDefect::OpenQuote));
            }
            return Ok((row.size > 0).then_some(row));
        }
        let mut end = None;
        let mut used = 0;
        for byte in buffer {
            used += 1;
            row.size += 1;
            if state != RowState::Quoted && matches!(byte, b'\n' | b'\r') {
                end = Some(*byte);
                break;
            }
            state = row.step(*byte, separator, state);
        }
        reader.consume(used);
        match end {
            None => {}
            Some(b'\r') => {
                // Windows ends lines with both; the second may stand in the next buffer.
                if reader.fill_buf()?.first() == Some(&b'\n') {
                    reader.consume(1);
                    row.size += 1;
                }
                return Ok(Some(row));
            }
            Some(_) => return Ok(Some(row)),
        }
    }
}
