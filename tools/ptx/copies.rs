//! Asynchronous copies of the Ampere kind (`cp.async`): issued by a thread, closed into groups, and done at the wait that
//! covers them. The hardware may bring the bytes at any time between; the machine does so at one of the two ends.

use std::collections::VecDeque;

use super::memory::Global;
use super::shared::Shared;

/// When the bytes of a copy arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyTiming {
    /// When it is issued: a buffer that is refilled while it is still read shows.
    Early,
    /// At the wait that covers it: a source or destination that changes meanwhile shows.
    Late,
}

/// A copy under way.
#[derive(Clone, Copy)]
struct Copy {
    from: u64,
    /// Its place in shared memory.
    to: usize,
    bytes: u8,
    /// Bytes that are read; the rest becomes zero.
    source_bytes: u8,
}

/// The copies of one thread.
#[derive(Clone, Default)]
pub struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

/// A copy as an instruction asks for it.
pub struct Asked {
    pub from: u64,
    pub to: u32,
    pub bytes: usize,
    pub source_bytes: u32,
}

fn bring(copy: Copy, global: &mut Global<'_>, shared: &mut Shared) -> Result<(), String> {
    let mut bytes = [0; 16];
    let source = &mut bytes[..usize::from(copy.source_bytes)];
    if !source.is_empty() {
        global.read(copy.from, usize::from(copy.bytes), source)?;
    }
    shared.arrive(copy.to, &bytes[..usize::from(copy.bytes)]);
    Ok(())
}

impl Copies {
    pub fn issue(
        &mut self,
        asked: &Asked,
        timing: CopyTiming,
        global: &mut Global<'_>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        if asked.source_bytes as usize > asked.bytes {
            return Err(format!(
                "a copy of {} bytes is given {} source bytes",
                asked.bytes, asked.source_bytes
            ));
        }
        if !asked.from.is_multiple_of(asked.bytes as u64) {
            return Err(format!(
                "the source {:#x} of a copy is not aligned to {} bytes",
                asked.from, asked.bytes
            ));
        }
        let copy = Copy {
            from: asked.from,
            to: shared.expect(asked.to, asked.bytes)?,
            bytes: asked.bytes as u8,
            source_bytes: asked.source_bytes as u8,
        };
        if timing == CopyTiming::Early {
            bring(copy, global, shared)?;
        }
        self.open.push(copy);
        Ok(())
    }

    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// Finishes all but the youngest `open` groups.
    pub fn wait(
        &mut self,
        open: usize,
        timing: CopyTiming,
        global: &mut Global<'_>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        while self.groups.len() > open {
            for copy in self.groups.pop_front().expect("there is one") {
                if timing == CopyTiming::Late {
                    bring(copy, global, shared)?;
                }
                shared.settle(copy.to, usize::from(copy.bytes));
            }
        }
        Ok(())
    }

    /// Copies that no wait has covered.
    pub fn unfinished(&self) -> usize {
        self.open.len() + self.groups.iter().map(Vec::len).sum::<usize>()
    }
}
