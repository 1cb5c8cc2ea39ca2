//! What the planner places: buffers with a lifetime and a size, and where they ended up.
//!
//! Also reads and writes them as `id,lower,upper,size[,offset]` tables, the format in which hard instances of this
//! problem are exchanged (Moffitt, MiniMalloc, ASPLOS 2023). Knows nothing of ops or tensors.

use keel_base::error::{Error, Result};
use std::fmt::Write as _;

/// A range of memory wanted for a part of the program: live at the ops `lower..upper` (half-open), `size` bytes
/// long, already rounded up to the alignment of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// The caller's name for it; the planner only repeats it in errors and tables.
    pub id: u32,
    /// The first op at which it is live.
    pub lower: u32,
    /// The first op at which it is live no more.
    pub upper: u32,
    /// Bytes, a multiple of the arena's alignment.
    pub size: u64,
}

impl Buffer {
    /// Whether some op needs both buffers at once.
    pub fn is_live_with(&self, other: &Buffer) -> bool {
        self.lower < other.upper && other.lower < self.upper
    }
}

/// Where every buffer lies.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// The first byte of each buffer, in the order in which the buffers were given.
    pub offsets: Vec<u64>,
    /// Bytes of the arena: no buffer ends beyond it.
    pub arena: u64,
}

/// Refuses buffers that are never live, and sets of buffers whose sizes do not sum within 64 bits.
///
/// Every public function of the planner calls this first.
///
/// # Errors
/// `Error::Setting` naming the buffer.
pub fn validate(buffers: &[Buffer]) -> Result<()> {
    let mut total: u64 = 0;
    for buffer in buffers {
        if buffer.lower >= buffer.upper {
            return Err(Error::setting(
                format!("lifetime of buffer {}", buffer.id),
                "a first op before the op where it is freed",
                format!("{}..{}", buffer.lower, buffer.upper),
            ));
        }
        total = total.checked_add(buffer.size).ok_or_else(|| {
            Error::setting(
                format!("size of buffer {}", buffer.id),
                "sizes that sum to less than 2^64 bytes",
                format!("{} bytes on top of {total}", buffer.size),
            )
        })?;
    }
    Ok(())
}

/// Reads a table with the columns `id`, `lower`, `upper`, `size` and perhaps `offset`, in any order.
///
/// Returns the buffers, and the offsets where the table has that column. `origin` names the table in errors.
///
/// # Errors
/// `Error::Content` naming the line and the column.
pub fn read_table(text: &str, origin: &str) -> Result<(Vec<Buffer>, Option<Vec<u64>>)> {
    const REMEDY: &str = "write one `id,lower,upper,size[,offset]` line a buffer under that header";
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> = match lines.next() {
        Some((_, line)) => line.split(',').map(str::trim).collect(),
        None => return Err(Error::content(origin, "the table is empty", REMEDY)),
    };
    let column = |name: &str| header.iter().position(|&heading| heading == name);
    let required = |name: &str| {
        column(name)
            .ok_or_else(|| Error::content(origin, format!("there is no column `{name}`"), REMEDY))
    };
    let (id, lower, upper, size) = (
        required("id")?,
        required("lower")?,
        required("upper")?,
        required("size")?,
    );
    let offset = column("offset");

    let mut buffers = Vec::new();
    let mut offsets = offset.map(|_| Vec::new());
    for (number, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |index: usize| -> Result<u64> {
            let text = cells.get(index).copied().unwrap_or("");
            text.parse().map_err(|_| {
                Error::content(
                    format!("{origin}, line {}", number + 1),
                    format!("column `{}` holds `{text}`", header[index]),
                    "write a whole number there",
                )
            })
        };
        let narrow = |index: usize| -> Result<u32> {
            let value = cell(index)?;
            u32::try_from(value).map_err(|_| {
                Error::content(
                    format!("{origin}, line {}", number + 1),
                    format!("column `{}` holds {value}", header[index]),
                    "keep it below 2^32",
                )
            })
        };
        buffers.push(Buffer {
            id: narrow(id)?,
            lower: narrow(lower)?,
            upper: narrow(upper)?,
            size: cell(size)?,
        });
        if let (Some(index), Some(offsets)) = (offset, offsets.as_mut()) {
            offsets.push(cell(index)?);
        }
    }
    Ok((buffers, offsets))
}

/// Writes the table that [`read_table`] reads, with an `offset` column where offsets are given.
pub fn write_table(buffers: &[Buffer], offsets: Option<&[u64]>) -> String {
    let mut text = String::from("id,lower,upper,size");
    text.push_str(if offsets.is_some() { ",offset\n" } else { "\n" });
    for (index, buffer) in buffers.iter().enumerate() {
        let Buffer {
            id,
            lower,
            upper,
            size,
        } = buffer;
        write!(text, "{id},{lower},{upper},{size}").expect("writing to a string cannot fail");
        if let Some(offset) = offsets.and_then(|offsets| offsets.get(index)) {
            write!(text, ",{offset}").expect("writing to a string cannot fail");
        }
        text.push('\n');
    }
    text
}
