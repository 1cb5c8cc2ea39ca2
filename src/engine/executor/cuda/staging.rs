//! How batches reach the GPU while it computes: the host writes one of two pinned halves, the copying stream brings it to
//! the half's counterpart on the device, and the run that uses it moves it to where the plan wants it. The step's own memory
//! cannot be written earlier: the step before may keep other values at the same place.

use std::collections::HashMap;
use std::sync::Arc;

use super::gpu::{Event, Gpu};
use super::memory::{DeviceMemory, PinnedMemory};
use crate::program::{Place, Program};
use crate::tape::Value;
use keel_base::error::{Error, Result};

/// Inputs start at multiples of this many bytes: a memory transaction.
const ALIGNMENT: usize = 256;

/// The place of one input.
#[derive(Clone, Copy)]
struct Slot {
    staged: usize,
    step: usize,
    bytes: usize,
}

struct Half {
    pinned: PinnedMemory,
    device: DeviceMemory,
    /// The copying stream is done with the pinned memory.
    uploaded: Event,
    /// The computing stream is done with the device's.
    consumed: Event,
}

/// See the module's documentation.
pub(super) struct Staging {
    gpu: Arc<Gpu>,
    slots: HashMap<Value, Slot>,
    halves: [Half; 2],
    current: usize,
    written: Vec<Value>,
}

impl Staging {
    /// Room for two batches of the program's inputs.
    pub fn new(gpu: &Arc<Gpu>, program: &Program) -> Result<Staging> {
        let mut slots = HashMap::new();
        let mut end = 0;
        let mut names: Vec<&str> = program.input_names().collect();
        // A fixed order: the layout of the staging memory shows in errors and must not change from run to run.
        names.sort_unstable();
        for name in names {
            let value = program.input(name)?;
            let bytes = program.ty(value).bytes();
            match program.place(value) {
                Place::Activations(step) => {
                    let slot = Slot {
                        staged: end,
                        step,
                        bytes,
                    };
                    slots.insert(value, slot);
                    end = (end + bytes).next_multiple_of(ALIGNMENT);
                }
                Place::Dropped => {}
                Place::Fixed(arena, _) => {
                    return Err(Error::setting(
                        format!("program input {name}"),
                        "a place in the step's memory",
                        format!("the {arena:?} arena"),
                    ));
                }
            }
        }
        let half = || -> Result<Half> {
            Ok(Half {
                pinned: PinnedMemory::new(gpu, "memory for the next batch", end)?,
                device: DeviceMemory::new(gpu, "memory for the next batch", end, 0)?,
                uploaded: Event::new(gpu, false)?,
                consumed: Event::new(gpu, false)?,
            })
        };
        let halves = [half()?, half()?];
        // The copying stream must not write before the memory is as `new` makes it.
        gpu.wait()?;
        Ok(Staging {
            gpu: gpu.clone(),
            slots,
            halves,
            current: 0,
            written: Vec::new(),
        })
    }

    /// Takes an input for the next run and starts its way to the device.
    pub fn write(&mut self, input: Value, data: &[u8]) -> Result<()> {
        let Some(slot) = self.slots.get(&input) else {
            return Ok(());
        };
        let half = &mut self.halves[self.current];
        // What the pinned memory holds may still be on its way: from two runs ago, or because it is written again.
        let is_again = self.written.contains(&input);
        if self.written.is_empty() || is_again {
            half.uploaded.wait()?;
        }
        half.pinned.write(slot.staged, data);
        // The run before last may still read this half on the device: the copying stream waits for it, the host does
        // not.
        half.consumed.hold(self.gpu.copies())?;
        half.device
            .upload_from(&half.pinned, slot.staged, slot.bytes, self.gpu.copies())?;
        half.uploaded.record(self.gpu.copies())?;
        if !is_again {
            self.written.push(input);
        }
        Ok(())
    }

    /// Moves what was written since the last run to its places, in the order of the computing stream.
    pub fn submit(&mut self, step: &DeviceMemory) -> Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        let half = &self.halves[self.current];
        // Two waits between streams and none of the host: the step starts when its batch is there.
        half.uploaded.hold(self.gpu.compute())?;
        for value in self.written.drain(..) {
            let slot = self.slots[&value];
            half.device
                .copy_to(slot.staged, step, slot.step, slot.bytes)?;
        }
        half.consumed.record(self.gpu.compute())?;
        self.current = 1 - self.current;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory goes with this value: no copy may be under way.
        self.gpu.bind().ok();
        for half in &self.halves {
            half.uploaded.wait().ok();
            half.consumed.wait().ok();
        }
    }
}
