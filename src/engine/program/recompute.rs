//! Trading work for memory: forward values that the backward part reads are computed again there instead of kept.
//!
//! A candidate is a set of forward ops of one block: its norms, activations and other cheap ops, or everything inside
//! it. Values that leave a block are always kept, so that a block can be computed again from its input alone (Chen et
//! al. 2016). Repeated ops are ordinary ops, so that a program with recompute gives the same bits as one without.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{CompileOptions, lifetimes};
use crate::plan;
use crate::tape::{Instruction, Storage, Value, ValueInfo};
use keel_base::error::{Error, Result};

/// What moving a byte is counted as, in floating-point operations: about what a processor's cores compute while they
/// move one. A repeated op often finds its operands in cache, so this is an upper estimate.
const FLOPS_PER_BYTE: f64 = 8.0;

/// Ops that are computed again together.
struct Candidate {
    /// Indices of forward instructions.
    instructions: Vec<usize>,
    flops: f64,
    bytes: u64,
}

/// A step with some of its cheap ops computed again, and its lower bound.
pub(super) struct Spent {
    pub values: Vec<ValueInfo>,
    pub instructions: Vec<Instruction>,
    pub bound: u64,
}

/// The step with ops of whole blocks computed again so that its lower bound fits `budget`, at little extra work. `budget`
/// is the one asked for, less what an earlier plan took above its bound.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] naming the smallest reachable arena when the budget cannot be met.
pub(super) fn meet_budget(
    values: &[ValueInfo],
    instructions: &[Instruction],
    kept: &[(String, Value)],
    options: &CompileOptions,
    budget: u64,
) -> Result<(Vec<ValueInfo>, Vec<Instruction>)> {
    let candidates = candidates(values, instructions);
    let evaluate = |chosen: &[usize]| -> Result<u64> {
        let selected = together(&candidates, chosen);
        bound_with(values, instructions, &selected, kept, options)
    };
    let asked = options.memory_budget.unwrap_or(budget);
    let chosen = choose(&candidates, budget, asked, evaluate)?;
    Ok(rewritten(
        values,
        instructions,
        &together(&candidates, &chosen),
    ))
}

/// The step with single cheap ops computed again, up to [`CompileOptions::spare_work`] of its work, where that lowers its
/// bound.
///
/// # Errors
/// Whatever laying out reports.
pub(super) fn spend(
    values: &[ValueInfo],
    instructions: &[Instruction],
    kept: &[(String, Value)],
    options: &CompileOptions,
) -> Result<Spent> {
    let (saved, _) = saved_and_leaving(instructions);
    // The allowance is a share of the whole step, products included, which are nearly all of it.
    let all: f64 = instructions.iter().map(|i| work(i, values)).sum();
    let mut allowance = all * options.spare_work;
    let mut single: Vec<(usize, f64, f64)> = instructions
        .iter()
        .enumerate()
        .filter(|(_, i)| is_repeatable(i) && !i.op.is_matrix_product() && !i.op.is_view())
        .map(|(index, i)| {
            let bytes = saved_bytes(i, values, &saved) as f64;
            (index, work(i, values), bytes)
        })
        .filter(|(_, work, bytes)| *bytes > 0.0 && *work <= allowance)
        .collect();
    // The last op's memory lives shortest, so among equals the first are worth most.
    let price = |(_, work, bytes): &(usize, f64, f64)| work / bytes;
    single.sort_by(|a, b| price(a).total_cmp(&price(b)).then(a.0.cmp(&b.0)));
    // Greedily, one op at a time and each held against the bound: bytes saved by one op need not lower the peak, which
    // is at one place, and then its work is better spent on another. A trial lays the step out anew but does not place
    // it.
    let mut selected = HashSet::new();
    let mut best = bound_with(values, instructions, &selected, kept, options)?;
    for (index, work, _) in single {
        if work > allowance {
            continue;
        }
        selected.insert(index);
        // Cumulative: `selected` holds what was taken before.
        let reached = bound_with(values, instructions, &selected, kept, options)?;
        if reached < best {
            best = reached;
            allowance -= work;
        } else {
            selected.remove(&index);
        }
    }
    let (values, instructions) = rewritten(values, instructions, &selected);
    Ok(Spent {
        values,
        instructions,
        bound: best,
    })
}

/// The lower bound of a step that computes `selected` again.
fn bound_with(
    values: &[ValueInfo],
    instructions: &[Instruction],
    selected: &HashSet<usize>,
    kept: &[(String, Value)],
    options: &CompileOptions,
) -> Result<u64> {
    let (mut values, instructions) = rewritten(values, instructions, selected);
    let laid = lifetimes::lay_out(&mut values, &instructions, kept, options)?;
    Ok(plan::lower_bound(&laid.buffers)?.bytes)
}

/// Whether an op may be computed again in the backward part. A collective may not: other ranks have a part in it.
fn is_repeatable(instruction: &Instruction) -> bool {
    !instruction.is_backward && instruction.op.collective().is_none()
}

/// The ops of the chosen candidates.
fn together(candidates: &[Candidate], chosen: &[usize]) -> HashSet<usize> {
    chosen
        .iter()
        .flat_map(|index| candidates[*index].instructions.clone())
        .collect()
}

/// The work of an op with what it moves.
fn work(instruction: &Instruction, values: &[ValueInfo]) -> f64 {
    let cost = instruction.cost(values);
    cost.flops
        .max(FLOPS_PER_BYTE * (cost.bytes_read + cost.bytes_written))
}

/// Bytes of an op's outputs that the backward part reads.
fn saved_bytes(instruction: &Instruction, values: &[ValueInfo], saved: &HashSet<Value>) -> u64 {
    let outputs = instruction.outputs.iter();
    outputs
        .filter(|output| saved.contains(output))
        .map(|output| values[output.index()].ty.bytes() as u64)
        .sum()
}

/// Picks candidates that bring the lower bound down to `budget`: the cheapest by work per byte, as few as do it, and
/// then none that turns out not to be needed.
fn choose(
    candidates: &[Candidate],
    budget: u64,
    asked: u64,
    evaluate: impl Fn(&[usize]) -> Result<u64>,
) -> Result<Vec<usize>> {
    let whole = evaluate(&[])?;
    if whole <= budget {
        return Ok(Vec::new());
    }
    let price = |index: &usize| candidates[*index].flops / candidates[*index].bytes as f64;
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| price(a).total_cmp(&price(b)).then(a.cmp(b)));
    let least = evaluate(&order)?;
    if least > budget {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        return Err(Error::setting(
            "--memory-budget",
            format!(
                "at least {:.1} MiB, which computing every block again reaches (a smaller batch needs less)",
                mib(least)
            ),
            format!(
                "{:.1} MiB, where keeping everything takes {:.1} MiB",
                mib(asked),
                mib(whole)
            ),
        ));
    }
    // Bisection over prefixes of the order. The bound need not fall with every candidate, so the prefix may not be the
    // shortest; the pass below takes out again what it does not need. Trying every prefix would lay the step out once
    // for each block.
    let (mut too_few, mut enough) = (0, order.len());
    while too_few + 1 < enough {
        let middle = (too_few + enough) / 2;
        if evaluate(&order[..middle])? <= budget {
            enough = middle
        } else {
            too_few = middle
        }
    }
    let mut chosen = order[..enough].to_vec();
    // The most expensive first: they are the ones worth dropping.
    for index in order[..enough].iter().rev() {
        let without: Vec<usize> = chosen.iter().copied().filter(|c| c != index).collect();
        if evaluate(&without)? <= budget {
            chosen = without;
        }
    }
    Ok(chosen)
}

/// The instruction that makes each value.
fn producers(instructions: &[Instruction]) -> HashMap<Value, usize> {
    instructions
        .iter()
        .enumerate()
        .flat_map(|(index, i)| i.outputs.iter().map(move |output| (*output, index)))
        .collect()
}

/// The forward values that the backward part reads, and the ops whose outputs leave their scope.
fn saved_and_leaving(instructions: &[Instruction]) -> (HashSet<Value>, HashSet<usize>) {
    let producers = producers(instructions);
    let mut saved: HashSet<Value> = HashSet::new();
    let mut leaves: HashSet<usize> = HashSet::new();
    for instruction in instructions {
        for input in &instruction.inputs {
            let Some(&producer) = producers.get(input) else {
                continue;
            };
            // What the backward part makes is not kept across anything.
            if instructions[producer].is_backward {
                continue;
            }
            if instruction.is_backward {
                saved.insert(*input);
            } else if instruction.scope != instructions[producer].scope {
                leaves.insert(producer);
            }
        }
    }
    (saved, leaves)
}

fn candidates(values: &[ValueInfo], instructions: &[Instruction]) -> Vec<Candidate> {
    let (saved, leaves) = saved_and_leaving(instructions);
    let mut scopes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, instruction) in instructions.iter().enumerate() {
        if is_repeatable(instruction) && !leaves.contains(&index) {
            scopes.entry(&instruction.scope).or_default().push(index);
        }
    }
    let describe = |chosen: Vec<usize>| {
        let of = |index: &usize| &instructions[*index];
        Candidate {
            flops: chosen
                .iter()
                .map(|index| of(index).cost(values).flops)
                .sum(),
            bytes: chosen
                .iter()
                .map(|index| saved_bytes(of(index), values, &saved))
                .sum(),
            instructions: chosen,
        }
    };
    let mut found = Vec::new();
    // Two candidates for each block: its cheap ops alone, and all of it, for when that does not reach. `together` makes
    // a set of what is chosen, so both may be.
    for inside in scopes.into_values() {
        let is_cheap = |index: &usize| !instructions[*index].op.is_matrix_product();
        let cheap: Vec<usize> = inside.iter().copied().filter(is_cheap).collect();
        if cheap.len() < inside.len() {
            found.push(describe(inside));
        }
        found.push(describe(cheap));
    }
    found.retain(|candidate| candidate.bytes > 0);
    found
}

/// The step with the selected forward ops repeated in the backward part, each right before its first use there.
fn rewritten(
    values: &[ValueInfo],
    old: &[Instruction],
    selected: &HashSet<usize>,
) -> (Vec<ValueInfo>, Vec<Instruction>) {
    let producers = producers(old);
    // Rebuilt front to back: a repeated op has to stand right before its first reader in the backward part, not sooner,
    // or its output would live as long as the one it replaces.
    let (mut values, mut instructions) = (values.to_vec(), Vec::with_capacity(old.len()));
    let mut repeated: HashMap<Value, Value> = HashMap::new();
    for instruction in old {
        let mut instruction = instruction.clone();
        if instruction.is_backward {
            for input in &mut instruction.inputs {
                let mut repeat = Repeat {
                    old,
                    producers: &producers,
                    selected,
                    values: &mut values,
                    instructions: &mut instructions,
                };
                *input = repeat.value(*input, &mut repeated);
            }
            // A view recorded in the backward part has its root by name, beside its input: both must be the repeated value.
            for output in &instruction.outputs {
                if let Storage::SameAs(root) = values[output.index()].storage
                    && let Some(new) = repeated.get(&root)
                {
                    values[output.index()].storage = Storage::SameAs(*new);
                }
            }
        }
        instructions.push(instruction);
    }
    (values, instructions)
}

struct Repeat<'a> {
    old: &'a [Instruction],
    producers: &'a HashMap<Value, usize>,
    selected: &'a HashSet<usize>,
    values: &'a mut Vec<ValueInfo>,
    instructions: &'a mut Vec<Instruction>,
}

impl Repeat<'_> {
    /// The value to read instead of `value`: itself, or the output of a repeated op, which is recorded now.
    fn value(&mut self, value: Value, repeated: &mut HashMap<Value, Value>) -> Value {
        if let Some(known) = repeated.get(&value) {
            return *known;
        }
        let Some(&producer) = self.producers.get(&value) else {
            return value;
        };
        let old = &self.old[producer];
        if old.is_backward {
            return value;
        }
        // A view of a repeated value has to be repeated with it; it costs nothing, and without it the reader would see
        // the value that was to be dropped.
        let is_view = old.op.is_view();
        if !is_view && !self.selected.contains(&producer) {
            return value;
        }
        let inputs: Vec<Value> = old
            .inputs
            .iter()
            .map(|input| self.value(*input, repeated))
            .collect();
        if is_view && inputs == old.inputs {
            return value;
        }
        let mut outputs = Vec::with_capacity(old.outputs.len());
        for output in &old.outputs {
            let mut info = self.values[output.index()].clone();
            // The name stays with the first value: it is the one that a host may have asked to keep.
            info.name = None;
            info.storage = if is_view {
                Storage::SameAs(inputs[0])
            } else {
                Storage::Planned
            };
            let new = Value(self.values.len() as u32);
            self.values.push(info);
            repeated.insert(*output, new);
            outputs.push(new);
        }
        self.instructions.push(Instruction {
            inputs,
            outputs,
            is_backward: true,
            ..old.clone()
        });
        repeated[&value]
    }
}
