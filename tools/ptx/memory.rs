//! Global memory: allocations far apart, so that no address of one is near another's, each with what was written to it.

/// Between the end of one allocation and the start of the next, bytes.
const GAP: u64 = 1 << 24;

/// Where the first allocation starts.
const FIRST: u64 = 0x7000_0000_0000;

/// The allocations of a program.
#[derive(Debug, Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
    next: u64,
}

/// A range of addresses and what it holds.
#[derive(Debug)]
pub struct Allocation {
    /// Its first address.
    pub start: u64,
    /// Its length.
    pub bytes: usize,
    /// What it holds; empty where only addresses matter, and then every read gives zero.
    pub data: Vec<u8>,
    /// Whether each byte was written.
    pub is_written: Vec<bool>,
}

/// What a launch's pointer may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first address.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Whether the kernel may write there.
    pub is_writable: bool,
    /// The allocation it lies in.
    pub allocation: usize,
}

impl Memory {
    /// Memory for `bytes` bytes, none of them written; its number.
    pub fn allocate(&mut self, bytes: usize) -> usize {
        let allocation = self.reserve(bytes);
        let made = &mut self.allocations[allocation];
        made.data = vec![0xff; bytes];
        made.is_written = vec![false; bytes];
        allocation
    }

    /// Addresses for `bytes` bytes without memory behind them: reads give zeros, and writes are dropped.
    pub fn reserve(&mut self, bytes: usize) -> usize {
        let start = if self.allocations.is_empty() {
            FIRST
        } else {
            self.next
        };
        self.next = (start + bytes as u64 + GAP).next_multiple_of(GAP);
        self.allocations.push(Allocation {
            start,
            bytes,
            data: Vec::new(),
            is_written: Vec::new(),
        });
        self.allocations.len() - 1
    }

    /// An allocation.
    pub fn get(&self, allocation: usize) -> &Allocation {
        &self.allocations[allocation]
    }

    /// Writes from the host.
    pub fn write(&mut self, allocation: usize, offset: usize, bytes: &[u8]) {
        let found = &mut self.allocations[allocation];
        found.data[offset..][..bytes.len()].copy_from_slice(bytes);
        found.is_written[offset..][..bytes.len()].fill(true);
    }

    /// Forgets what was written to `bytes` bytes.
    pub fn forget(&mut self, allocation: usize, offset: usize, bytes: usize) {
        let found = &mut self.allocations[allocation];
        found.data[offset..][..bytes].fill(0xff);
        found.is_written[offset..][..bytes].fill(false);
    }
}

/// Global memory as one launch sees it.
pub struct Global<'a> {
    pub memory: &'a mut Memory,
    pub extents: &'a [Extent],
    /// The extent that was met last: the lanes of a warp mostly touch the same.
    last: usize,
}

impl<'a> Global<'a> {
    pub fn new(memory: &'a mut Memory, extents: &'a [Extent]) -> Global<'a> {
        Global {
            memory,
            extents,
            last: 0,
        }
    }

    /// The allocation and place of an access.
    #[inline]
    fn find(
        &mut self,
        address: u64,
        bytes: u64,
        align: u64,
        writes: bool,
    ) -> Result<(usize, usize), String> {
        if !address.is_multiple_of(align) {
            return Err(format!(
                "the address {address:#x} is not aligned to {align} bytes"
            ));
        }
        let holds = |extent: &Extent| {
            let at = address.wrapping_sub(extent.start);
            at < extent.bytes && at + bytes <= extent.bytes && (extent.is_writable || !writes)
        };
        if !self.extents.get(self.last).is_some_and(holds) {
            let found = self.extents.iter().position(holds);
            self.last = found.ok_or_else(|| self.outside(address, bytes, writes))?;
        }
        let allocation = self.extents[self.last].allocation;
        let at = address - self.memory.allocations[allocation].start;
        Ok((allocation, at as usize))
    }

    #[cold]
    fn outside(&self, address: u64, bytes: u64, writes: bool) -> String {
        let verb = if writes { "writes" } else { "reads" };
        let near = self
            .extents
            .iter()
            .filter(|e| address >= e.start && address < e.start + e.bytes + GAP / 2);
        match near.max_by_key(|extent| extent.start) {
            Some(extent) => format!(
                "it {verb} {bytes} bytes at byte {} of an argument of {} bytes{}",
                address - extent.start,
                extent.bytes,
                if extent.is_writable {
                    ""
                } else {
                    " that it may only read"
                }
            ),
            None => format!("it {verb} {bytes} bytes at {address:#x}, outside every argument"),
        }
    }

    /// Reads into `to`.
    #[inline]
    pub fn read(&mut self, address: u64, align: usize, to: &mut [u8]) -> Result<(), String> {
        let (allocation, at) = self.find(address, to.len() as u64, align as u64, false)?;
        let found = &self.memory.allocations[allocation];
        if found.data.is_empty() {
            to.fill(0);
            return Ok(());
        }
        if let Some(byte) = found.is_written[at..][..to.len()].iter().position(|w| !w) {
            return Err(format!(
                "it reads byte {} of a buffer of {} bytes, which nobody has written",
                at + byte,
                found.bytes
            ));
        }
        to.copy_from_slice(&found.data[at..][..to.len()]);
        Ok(())
    }

    /// Writes.
    #[inline]
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), String> {
        let (allocation, at) = self.find(address, from.len() as u64, from.len() as u64, true)?;
        let found = &mut self.memory.allocations[allocation];
        if !found.data.is_empty() {
            found.data[at..][..from.len()].copy_from_slice(from);
            found.is_written[at..][..from.len()].fill(true);
        }
        Ok(())
    }
}
