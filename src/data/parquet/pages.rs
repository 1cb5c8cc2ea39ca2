//! What the Parquet library reads a file by: pieces at their places, for any number of threads, and pages of a size that a
//! program can hold.

use std::io::{BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use crate::data::archive::Source;

/// Largest piece that is read at once, bytes; a page is 1 MiB where nobody asks for more, or one picture.
const MAX_PIECE_BYTES: usize = 256 << 20;

/// Most values of a page. Levels are packed so well that a few bytes can claim any number of them.
const MAX_PAGE_VALUES: u32 = 1 << 22;

/// Bytes read ahead where a page's header is looked for.
const READ_AHEAD: usize = 4 << 10;

/// A file read at any place by any thread.
#[derive(Clone)]
pub(super) struct Pieces(Arc<Source>);

impl Pieces {
    pub fn new(source: Source) -> Pieces {
        Pieces(Arc::new(source))
    }

    fn piece(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        if length > MAX_PIECE_BYTES {
            let problem = format!("a page has {length} bytes, the limit is {MAX_PIECE_BYTES}");
            return Err(ParquetError::General(problem));
        }
        let read = self.0.read(start, length as u64);
        read.map_err(|error| ParquetError::General(error.to_string()))
    }
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Pieces {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> Result<BufReader<From>> {
        let from = From {
            pieces: self.clone(),
            place: start,
        };
        Ok(BufReader::with_capacity(READ_AHEAD, from))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.piece(start, length).map(Bytes::from)
    }
}

/// Reads on from a place.
pub(super) struct From {
    pieces: Pieces,
    place: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.pieces.len().saturating_sub(self.place);
        let size = left.min(buffer.len() as u64) as usize;
        let piece = self.pieces.piece(self.place, size);
        buffer[..size].copy_from_slice(&piece.map_err(std::io::Error::other)?);
        self.place += size as u64;
        Ok(size)
    }
}

/// Pages, none of more values than can be meant and none of no values: pyarrow writes such a one now and then within a list,
/// and the library takes it for the end of a column.
pub(super) struct Guarded(pub Box<dyn PageReader>);

impl Guarded {
    fn checked(page: Option<Page>) -> Result<Option<Page>> {
        match page {
            Some(page) if page.num_values() > MAX_PAGE_VALUES => {
                let values = page.num_values();
                let problem =
                    format!("a page claims {values} values, the limit is {MAX_PAGE_VALUES}");
                Err(ParquetError::General(problem))
            }
            page => Ok(page),
        }
    }

    /// Passes over pages of no values.
    fn pass_over_empty(&mut self) -> Result<()> {
        let is_empty = |page: &PageMetadata| !page.is_dict && page.num_levels == Some(0);
        while self.0.peek_next_page()?.as_ref().is_some_and(is_empty) {
            self.0.skip_next_page()?;
        }
        Ok(())
    }
}

impl Iterator for Guarded {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Guarded {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.pass_over_empty()?;
        Guarded::checked(self.0.get_next_page()?)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pass_over_empty()?;
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.0.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        Guarded::checked(self.0.take_deferred_dictionary()?)
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pass_over_empty()?;
        self.0.at_record_boundary()
    }
}
