//! The life of every value of a program: from the op that makes it to the last that reads it.
//!
//! An output that may take its input's place, at the input's last use, shares one buffer with it. Inputs of the
//! program live throughout, so that a run can be repeated without writing them again.

use super::{ALIGNMENT, CompileOptions};
use crate::plan::{Buffer, Placement};
use crate::tape::{Arena, Instruction, Storage, Value, ValueInfo, root};
use keel_base::error::Result;

/// What a range of planned memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Written by the host before a run.
    Input,
    /// Made by the forward part and read by the backward part.
    Saved,
    /// Anything else an op made.
    Transient,
    /// Scratch memory of one op.
    Workspace,
}

/// One planned range of memory.
#[derive(Clone, Debug)]
pub struct PlannedBytes {
    /// The value's name, or the op that made it.
    pub name: String,
    /// What it holds.
    pub class: Class,
    /// First op at which it is live.
    pub lower: u32,
    /// First op at which it is live no more.
    pub upper: u32,
    /// Bytes, rounded up to the alignment.
    pub bytes: u64,
    /// First byte in the arena of activations.
    pub offset: u64,
}

/// Buffers for the planner and how values map to them.
pub(super) struct Laid {
    pub buffers: Vec<Buffer>,
    /// The buffer of each root value.
    pub buffer_of_value: Vec<Option<usize>>,
    /// For each instruction and input, the output in its place.
    pub in_place: Vec<Vec<Option<usize>>>,
    /// For each instruction, its workspace's buffer and bytes.
    pub workspaces: Vec<Option<(usize, usize)>>,
    labels: Vec<(String, Class)>,
}

impl Laid {
    pub fn describe(&self, values: &[ValueInfo], placement: &Placement) -> Vec<PlannedBytes> {
        // Values that share a buffer may all have names: the first, the one that is made first, is shown.
        let mut names: Vec<Option<&str>> = vec![None; self.buffers.len()];
        for (index, info) in values.iter().enumerate() {
            if let (Some(buffer), Some(name)) = (self.buffer_of_value[index], &info.name) {
                names[buffer].get_or_insert(name);
            }
        }
        self.buffers
            .iter()
            .enumerate()
            .map(|(index, buffer)| {
                let (made_by, class) = &self.labels[index];
                PlannedBytes {
                    name: names[index].unwrap_or(made_by).to_owned(),
                    class: *class,
                    lower: buffer.lower,
                    upper: buffer.upper,
                    bytes: buffer.size,
                    offset: placement.offsets[index],
                }
            })
            .collect()
    }
}

/// The first and last use of one root value.
#[derive(Clone, Copy)]
struct Life {
    made: usize,
    last: usize,
    is_live: bool,
    crosses: bool,
}

pub(super) fn lay_out(
    values: &mut [ValueInfo],
    instructions: &[Instruction],
    kept: &[(String, Value)],
    options: &CompileOptions,
) -> Result<Laid> {
    let end = instructions.len();
    let roots: Vec<usize> = (0..values.len())
        .map(|index| root(values, Value(index as u32)).index())
        .collect();
    let mut lives = find_lives(values, instructions, &roots);
    // The host reads these after the last op, so nothing may take their place before.
    for (_, value) in kept {
        lives[roots[value.index()]].last = end;
    }
    // Sharing comes before buffers are made: it decides how many there are, and moves some values out of the plan for
    // good.
    let shared = share_places(values, instructions, (&roots, &lives), options);
    let mut laid = Laid {
        buffers: Vec::new(),
        buffer_of_value: vec![None; values.len()],
        in_place: shared.in_place,
        workspaces: Vec::new(),
        labels: Vec::new(),
    };
    laid.add_values(values, instructions, (&roots, &lives), &shared.leader);
    laid.add_workspaces(values, instructions, options);
    Ok(laid)
}

fn is_planned(values: &[ValueInfo], index: usize) -> bool {
    values[index].storage == Storage::Planned
}

/// Which values lie in one place.
struct Shared {
    /// For each value, the first of its chain of in-place ops.
    leader: Vec<usize>,
    /// For each instruction and input, the output in its place.
    in_place: Vec<Vec<Option<usize>>>,
}

/// Lets outputs take the places of inputs that nothing reads afterwards.
fn share_places(
    values: &mut [ValueInfo],
    instructions: &[Instruction],
    (roots, lives): (&[usize], &[Life]),
    options: &CompileOptions,
) -> Shared {
    let mut leader: Vec<usize> = (0..values.len()).collect();
    let mut in_place = Vec::with_capacity(instructions.len());
    // In the order of running, so that a chain of ops that work in place hands its first value's buffer on link by
    // link.
    for (index, instruction) in instructions.iter().enumerate() {
        let mut pairs = vec![None; instruction.inputs.len()];
        let mut taken = vec![false; instruction.outputs.len()];
        // First come, first served, in the op's order. An op may name an input that only its accumulating form takes.
        for &(output, input) in instruction.op.in_place() {
            if input >= instruction.inputs.len() || taken[output] {
                continue;
            }
            let (from, to) = (instruction.inputs[input], instruction.outputs[output]);
            let (from_root, to_root) = (roots[from.index()], roots[to.index()]);
            if values[from_root].storage == values[to_root].storage
                && !is_planned(values, from_root)
            {
                // An update of a fixed arena.
                pairs[input] = Some(output);
                taken[output] = true;
                continue;
            }
            // By root, not by value: two views of one value are two inputs that lie in one place.
            let appears_once = instruction
                .inputs
                .iter()
                .filter(|v| roots[v.index()] == from_root)
                .count()
                == 1;
            // An input of the program keeps its place, so that a run can be repeated without writing it again; a value that
            // the op reads twice would be overwritten under its other reader.
            let may_take = options.share_memory
                && is_planned(values, from_root)
                && !values[from_root].is_input
                && lives[from_root].last == index
                && appears_once
                && values[from_root].ty.bytes() == values[to_root].ty.bytes();
            if !may_take {
                continue;
            }
            match values[to_root].storage {
                // The leader of the whole chain, not the link before: a chain has one buffer.
                Storage::Planned => {
                    leader[to_root] = leader[from_root];
                }
                // The sum of gradients grows in its final place. The whole chain moves there.
                // A value that already follows another cannot move: its leader, made before, would stay behind.
                Storage::Fixed(Arena::Gradients, _) if leader[from_root] == from_root => {
                    values[from_root].storage = values[to_root].storage;
                }
                _ => continue,
            }
            pairs[input] = Some(output);
            taken[output] = true;
        }
        in_place.push(pairs);
    }
    Shared { leader, in_place }
}

impl Laid {
    /// Adds a buffer for every chain of values that share a place.
    fn add_values(
        &mut self,
        values: &[ValueInfo],
        instructions: &[Instruction],
        (roots, lives): (&[usize], &[Life]),
        leader: &[usize],
    ) {
        let end = instructions.len();
        // Leaders first: a value that is computed again has a later index than what takes its place.
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&index| leader[index] != index);
        for index in order {
            let life = lives[index];
            // Views share their root's bytes; what no op makes and no host writes needs none.
            if roots[index] != index || !is_planned(values, index) || !life.is_live {
                continue;
            }
            // A value of no elements still gets a place: every buffer has an address of its own, and checks stay
            // without a special case.
            let size = values[index]
                .ty
                .bytes()
                .next_multiple_of(ALIGNMENT)
                .max(ALIGNMENT) as u64;
            // An input lives throughout. Any other value lives from its op to its last reader, which is included:
            // lifetimes are half-open. What nobody reads lives for its own op, which writes it all the same.
            let (lower, upper) = if values[index].is_input {
                (0, end.max(1) as u32)
            } else {
                (life.made as u32, (life.last.min(end.max(1) - 1) + 1) as u32)
            };
            let class = match life {
                _ if values[index].is_input => Class::Input,
                Life { crosses: true, .. } => Class::Saved,
                _ => Class::Transient,
            };
            // A value in another's place lengthens its buffer's life and adds none.
            if leader[index] != index {
                let buffer = self.buffer_of_value[leader[index]]
                    .expect("a value whose place is taken has one, and was laid out before");
                let shared: &mut Buffer = &mut self.buffers[buffer];
                shared.lower = shared.lower.min(lower);
                shared.upper = shared.upper.max(upper);
                shared.size = shared.size.max(size);
                if class == Class::Saved {
                    self.labels[buffer].1 = Class::Saved;
                }
                self.buffer_of_value[index] = Some(buffer);
                continue;
            }
            let made_by = instructions
                .get(life.made)
                .map_or("input".to_owned(), Instruction::label);
            self.buffer_of_value[index] = Some(self.buffers.len());
            self.add((made_by, class), (lower, upper), size);
        }
    }

    /// Adds a buffer for the scratch memory of every instruction that has some: live while it runs.
    fn add_workspaces(
        &mut self,
        values: &[ValueInfo],
        instructions: &[Instruction],
        options: &CompileOptions,
    ) {
        for (index, instruction) in instructions.iter().enumerate() {
            let [inputs, outputs] = instruction.types(values);
            let compile_target = options.compile_target;
            let bytes = instruction.op.workspace(&inputs, &outputs, compile_target);
            if bytes == 0 {
                self.workspaces.push(None);
                continue;
            }
            let size = bytes.next_multiple_of(ALIGNMENT) as u64;
            self.workspaces.push(Some((self.buffers.len(), bytes)));
            let label = (
                format!("{} workspace", instruction.label()),
                Class::Workspace,
            );
            self.add(label, (index as u32, index as u32 + 1), size);
        }
    }

    fn add(&mut self, label: (String, Class), (lower, upper): (u32, u32), size: u64) {
        assert!(
            lower < upper,
            "{} lives for no op: {lower}..{upper}",
            label.0
        );
        assert!(
            size.is_multiple_of(ALIGNMENT as u64),
            "{} has {size} bytes, and offsets are sums of sizes",
            label.0
        );
        self.labels.push(label);
        self.buffers.push(Buffer {
            id: self.buffers.len() as u32,
            lower,
            upper,
            size,
        });
    }
}

fn find_lives(values: &[ValueInfo], instructions: &[Instruction], roots: &[usize]) -> Vec<Life> {
    let unused = Life {
        made: 0,
        last: 0,
        is_live: false,
        crosses: false,
    };
    let mut lives = vec![unused; values.len()];
    let mut made_forward = vec![false; values.len()];
    for (index, info) in values.iter().enumerate() {
        lives[index].is_live = info.is_input;
    }
    for (index, instruction) in instructions.iter().enumerate() {
        // A view reads nothing: whoever reads the view reads the root, and that is counted there.
        if instruction.op.is_view() {
            continue;
        }
        for input in &instruction.inputs {
            let root = roots[input.index()];
            lives[root].last = index;
            // Made forward and read backward: the memory that recomputing can give back.
            lives[root].crosses |= instruction.is_backward && made_forward[root];
        }
        for output in &instruction.outputs {
            let root = roots[output.index()];
            lives[root] = Life {
                made: index,
                last: index,
                is_live: true,
                crosses: false,
            };
            made_forward[root] = !instruction.is_backward;
        }
    }
    lives
}
