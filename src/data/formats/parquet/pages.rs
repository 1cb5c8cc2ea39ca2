//! Pages of a size that a program can hold.

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Most values of a page. Levels are packed so well that a few bytes can claim any number of them.
const MAX_PAGE_VALUES: u32 = 1 << 22;

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
