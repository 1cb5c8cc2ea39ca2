//! What works on its own in a block of the Hopper kind: copies by tensor maps, the barriers in shared memory that count them, stores
//! by tensor maps, and products of warpgroups. As with `cp.async`, what is asked for happens at one of two ends: when it is
//! asked for, or as late as the rules allow.

use std::collections::{BTreeMap, VecDeque};

use keel_engine::launch::{Swizzle, TensorMap};

use super::copies::CopyTiming;
use super::memory::Global;
use super::shared::Shared;

/// Warps of a warpgroup.
pub const GROUP: usize = 4;

/// Above the addresses of memory: what a kernel takes for the address of its tensor map of a number.
const MAP_ADDRESS: u64 = 1 << 60;

/// A tensor map as a launch passes it.
#[derive(Clone, Copy, Debug)]
pub struct TensorArgument {
    /// Where the tensor starts.
    pub address: u64,
    /// What it is.
    pub map: TensorMap,
}

impl TensorArgument {
    /// The bits of the argument that is the map of this number in [`super::Launch::maps`].
    pub fn bits(number: usize) -> u64 {
        MAP_ADDRESS | number as u64
    }
}

/// The map whose address a register holds.
pub fn map_at(maps: &[TensorArgument], address: u64) -> Result<&TensorArgument, String> {
    let number = address.wrapping_sub(MAP_ADDRESS);
    usize::try_from(number)
        .ok()
        .and_then(|number| maps.get(number))
        .ok_or_else(|| format!("{address:#x} is the address of no tensor map of the launch"))
}

/// Where a box with a swizzle has the byte that it would have at `address` without.
pub fn swizzled(address: u32, swizzle: Swizzle) -> u32 {
    let pieces = swizzle.span().map_or(1, |span| span as u32 / 16);
    address ^ ((address >> 7 & (pieces - 1)) << 4)
}

struct Barrier {
    expected: u32,
    pending: u32,
    bytes: i64,
    phase: u64,
}

/// A box between global and shared memory.
#[derive(Clone)]
pub struct Boxed {
    pub argument: TensorArgument,
    pub coordinates: Vec<i32>,
    pub shared: u32,
}

impl Boxed {
    fn element(&self) -> usize {
        self.argument.map.element().size()
    }

    /// Bytes of the whole box, also of what lies outside the tensor.
    fn bytes(&self) -> usize {
        let extents = self.argument.map.shape();
        let elements: usize = extents.box_dims.iter().map(|x| *x as usize).product();
        elements * self.element()
    }

    /// Of each 16 bytes of the box, where they lie in shared memory and where in global, and which of them lie inside the
    /// tensor: the first and the end.
    fn pieces(&self) -> Vec<(u32, u64, usize, usize)> {
        let shape = self.argument.map.shape();
        let element = self.element();
        let row_bytes = shape.box_dims[0] as usize * element;
        let rows: usize = shape.box_dims[1..].iter().map(|x| *x as usize).product();
        let mut pieces = Vec::new();
        for row in 0..rows {
            let (mut rest, mut offset, mut is_inside) = (row, 0i64, true);
            for axis in 1..shape.dims.len() {
                let extent = shape.box_dims[axis] as usize;
                let at = i64::from(self.coordinates[axis]) + (rest % extent) as i64;
                rest /= extent;
                is_inside &= at >= 0 && (at as u64) < shape.dims[axis];
                offset += at * shape.strides[axis - 1] as i64;
            }
            for start in (0..row_bytes).step_by(16) {
                let x = i64::from(self.coordinates[0]) * element as i64 + start as i64;
                let width = shape.dims[0] as i64 * element as i64;
                let first = (-x).clamp(0, 16) as usize;
                let end = (width - x).clamp(0, 16) as usize;
                let plain = self.shared + (row * row_bytes + start) as u32;
                pieces.push((
                    swizzled(plain, shape.swizzle),
                    self.argument.address.wrapping_add((offset + x) as u64),
                    first,
                    if is_inside { end.max(first) } else { first },
                ));
            }
        }
        pieces
    }

    /// Refuses what TMA cannot do.
    fn check(&self) -> Result<(), String> {
        let shape = self.argument.map.shape();
        if shape.dims.len() != self.coordinates.len() {
            return Err(format!(
                "{} coordinates are given of a tensor map of {} dimensions",
                self.coordinates.len(),
                shape.dims.len()
            ));
        }
        let alignment = if shape.swizzle == Swizzle::None {
            128
        } else {
            1024
        };
        if !self.shared.is_multiple_of(alignment) {
            return Err(format!(
                "a box at {:#x} is not aligned to {alignment} bytes",
                self.shared
            ));
        }
        Ok(())
    }
}

/// A product that a warpgroup has asked for.
#[derive(Clone, Debug)]
pub struct Product {
    /// Its instruction.
    pub index: u32,
    /// Descriptors of A, where it is no fragment, and of B.
    pub descriptors: [u64; 2],
    /// Whether d is added to.
    pub accumulates: bool,
}

/// The products of a warpgroup: those not done, oldest first, and how many each committed group ends behind.
#[derive(Default)]
pub struct Group {
    pub open: VecDeque<Product>,
    pub finished: usize,
    pub ends: Vec<usize>,
    /// Groups that each warp has committed.
    pub commits: [usize; GROUP],
}

/// The stores of a thread: those since the last commit, and the groups.
#[derive(Default)]
struct Stores {
    open: Vec<Boxed>,
    groups: VecDeque<Vec<Boxed>>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Agents {
    barriers: BTreeMap<u32, Barrier>,
    loads: VecDeque<(Boxed, u32, u64)>,
    stores: BTreeMap<u32, Stores>,
    pub groups: BTreeMap<usize, Group>,
}

impl Agents {
    fn barrier(&mut self, address: u32) -> Result<&mut Barrier, String> {
        self.barriers
            .get_mut(&address)
            .ok_or_else(|| format!("there is no barrier at {address:#x} of shared memory"))
    }

    pub fn init(&mut self, address: u32, expected: u32) -> Result<(), String> {
        let barrier = Barrier {
            expected,
            pending: expected,
            bytes: 0,
            phase: 0,
        };
        if expected == 0 || !address.is_multiple_of(8) {
            return Err(format!(
                "a barrier of {expected} arrivals at {address:#x} cannot be"
            ));
        }
        match self.barriers.insert(address, barrier) {
            None => Ok(()),
            Some(_) => Err(format!("there is a barrier at {address:#x} already")),
        }
    }

    pub fn invalidate(&mut self, address: u32) -> Result<(), String> {
        self.barrier(address)?;
        self.barriers.remove(&address);
        Ok(())
    }

    fn settle(barrier: &mut Barrier) {
        if barrier.pending == 0 && barrier.bytes == 0 {
            barrier.phase += 1;
            barrier.pending = barrier.expected;
        }
    }

    pub fn arrive(&mut self, address: u32, bytes: u32) -> Result<(), String> {
        let barrier = self.barrier(address)?;
        if barrier.pending == 0 {
            return Err(format!(
                "all {} arrivals have come at the barrier at {address:#x}",
                barrier.expected
            ));
        }
        barrier.pending -= 1;
        barrier.bytes += i64::from(bytes);
        Agents::settle(barrier);
        Ok(())
    }

    /// Whether the phase of a parity has ended.
    pub fn has_ended(&mut self, address: u32, parity: u32) -> Result<bool, String> {
        Ok(self.barrier(address)?.phase % 2 != u64::from(parity))
    }

    pub fn load(
        &mut self,
        asked: Boxed,
        barrier: u32,
        timing: CopyTiming,
        global: &mut Global<'_>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        asked.check()?;
        let phase = self.barrier(barrier)?.phase;
        for (to, ..) in asked.pieces() {
            shared.expect(to, 16)?;
        }
        self.loads.push_back((asked, barrier, phase));
        if timing == CopyTiming::Early {
            self.land(global, shared)?;
        }
        Ok(())
    }

    /// Lets the oldest load arrive; whether there was one.
    pub fn land(&mut self, global: &mut Global<'_>, shared: &mut Shared) -> Result<bool, String> {
        let Some((asked, address, phase)) = self.loads.pop_front() else {
            return Ok(false);
        };
        for (to, from, first, end) in asked.pieces() {
            let mut bytes = [0; 16];
            if end > first {
                global.read(from + first as u64, 1, &mut bytes[first..end])?;
            }
            let at = shared.place_of(to, 16)?;
            shared.arrive(at, &bytes);
            shared.settle(at, 16);
        }
        let bytes = asked.bytes() as i64;
        let barrier = self.barrier(address)?;
        if barrier.phase != phase {
            return Err(format!(
                "a copy lands after the phase of its barrier at {address:#x} has ended"
            ));
        }
        barrier.bytes -= bytes;
        Agents::settle(barrier);
        Ok(true)
    }

    pub fn store(
        &mut self,
        thread: u32,
        asked: Boxed,
        timing: CopyTiming,
        global: &mut Global<'_>,
        shared: &Shared,
    ) -> Result<(), String> {
        asked.check()?;
        if timing == CopyTiming::Early {
            write(&asked, global, shared)?;
        }
        self.stores.entry(thread).or_default().open.push(asked);
        Ok(())
    }

    pub fn commit_stores(&mut self, thread: u32) {
        let stores = self.stores.entry(thread).or_default();
        stores.groups.push_back(std::mem::take(&mut stores.open));
    }

    pub fn wait_stores(
        &mut self,
        thread: u32,
        open: usize,
        timing: CopyTiming,
        global: &mut Global<'_>,
        shared: &Shared,
    ) -> Result<(), String> {
        let stores = self.stores.entry(thread).or_default();
        while stores.groups.len() > open {
            for asked in stores.groups.pop_front().expect("there is one") {
                if timing == CopyTiming::Late {
                    write(&asked, global, shared)?;
                }
            }
        }
        Ok(())
    }

    /// What a block may not end with: work of its own that nobody has waited for.
    pub fn unfinished(&self) -> Option<String> {
        if let Some((boxed, ..)) = self.loads.front() {
            return Some(format!(
                "a load to {:#x} that nobody waited for",
                boxed.shared
            ));
        }
        if let Some((address, barrier)) = self.barriers.iter().find(|(_, b)| b.bytes != 0) {
            let bytes = barrier.bytes;
            return Some(format!(
                "a barrier at {address:#x} that wants {bytes} bytes"
            ));
        }
        if self.groups.values().any(|group| !group.open.is_empty()) {
            return Some("products that no wait covers".to_owned());
        }
        let is_open = |stores: &Stores| !stores.open.is_empty() || !stores.groups.is_empty();
        let thread = self.stores.iter().find(|(_, stores)| is_open(stores))?.0;
        Some(format!("stores of thread {thread} that no wait covers"))
    }
}

fn write(asked: &Boxed, global: &mut Global<'_>, shared: &Shared) -> Result<(), String> {
    for (from, to, first, end) in asked.pieces() {
        let mut bytes = [0; 16];
        shared.read(from, &mut bytes)?;
        // Rows of a tensor are multiples of 16 bytes, but a box may begin anywhere: by its elements.
        for at in (first..end).step_by(asked.element()) {
            global.write(to + at as u64, &bytes[at..at + asked.element()])?;
        }
    }
    Ok(())
}

/// The bf16 of a tile that a descriptor of the 128-byte swizzle tells, as `[mn][k]` for 16 of k.
///
/// # Errors
/// What the descriptor has that no tile of the project has, and memory that holds nothing.
pub fn tile(
    shared: &Shared,
    descriptor: u64,
    is_transposed: bool,
    extent: usize,
) -> Result<Vec<[f32; 16]>, String> {
    let field = |bit: u32| (descriptor >> bit & 0x3fff) as u32 * 16;
    let (start, leading, stride) = (field(0), field(16), field(32));
    if descriptor >> 62 != 1 || descriptor >> 49 & 7 != 0 {
        return Err(format!(
            "the descriptor {descriptor:#x} is not of the 128-byte swizzle"
        ));
    }
    let mut tile = vec![[0.0; 16]; extent];
    let take = |plain: u32| -> Result<[f32; 8], String> {
        let mut bytes = [0; 16];
        shared.read(swizzled(plain, Swizzle::Span128), &mut bytes)?;
        Ok(std::array::from_fn(|i| {
            let bits = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            f32::from_bits(u32::from(bits) << 16)
        }))
    };
    if is_transposed {
        for k in 0..16u32 {
            for mn in (0..extent as u32).step_by(8) {
                let plain = start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2;
                for (i, value) in take(plain)?.into_iter().enumerate() {
                    tile[mn as usize + i][k as usize] = value;
                }
            }
        }
    } else {
        for (mn, row) in tile.iter_mut().enumerate() {
            for half in 0..2 {
                let mn = mn as u32;
                let plain = start + mn / 8 * stride + mn % 8 * 128 + 16 * half;
                row[8 * half as usize..][..8].copy_from_slice(&take(plain)?);
            }
        }
    }
    Ok(tile)
}
