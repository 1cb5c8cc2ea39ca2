//! One column of one group, read row by row.

use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::ByteArrayType;
use parquet::file::reader::RowGroupReader;

use super::damage::{Problem, broken};
use super::leaf::{Field, Leaf};
use super::pages::Guarded;

/// Rows that are unpacked together to pass over them.
const PASSED_OVER: usize = 16;

/// See the module's documentation.
pub(super) struct Column<'a> {
    pub leaf: &'a Leaf,
    reader: ColumnReaderImpl<ByteArrayType>,
}

impl<'a> Column<'a> {
    pub fn open(
        group: &dyn RowGroupReader,
        leaf: &'a Leaf,
        name: &str,
    ) -> Result<Column<'a>, Problem> {
        let descriptor = group.metadata().schema_descr().column(leaf.column);
        let pages = group.get_column_page_reader(leaf.column);
        let pages = Guarded(pages.map_err(|e| broken(name, e))?);
        let reader = ColumnReaderImpl::new(descriptor, Box::new(pages));
        Ok(Column { leaf, reader })
    }

    /// The next row.
    pub fn next(&mut self, name: &str) -> Result<Field, Problem> {
        self.read(name, 1)
    }

    fn read(&mut self, name: &str, rows: usize) -> Result<Field, Problem> {
        let mut field = Field::default();
        let (definition, repetition) = (&mut field.definition, &mut field.repetition);
        let values = &mut field.values;
        let read = self
            .reader
            .read_records(rows, Some(definition), Some(repetition), values);
        match read.map_err(|e| broken(name, e))? {
            (found, ..) if found == rows => Ok(field),
            _ => Err(broken(name, "a column ends before it")),
        }
    }

    /// Passes over rows.
    pub fn skip(&mut self, name: &str, rows: usize) -> Result<(), Problem> {
        // The library never comes back from passing over lists whose levels end too early; from reading them it does.
        if self.leaf.is_list() {
            let whole = rows / PASSED_OVER;
            for _ in 0..whole {
                self.read(name, PASSED_OVER)?;
            }
            return self.read(name, rows % PASSED_OVER).map(|_| ());
        }
        match self
            .reader
            .skip_records(rows)
            .map_err(|e| broken(name, e))?
        {
            skipped if skipped == rows => Ok(()),
            _ => Err(broken(name, "a column ends before it")),
        }
    }
}
