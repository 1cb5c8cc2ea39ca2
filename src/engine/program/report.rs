//! The memory of a program in words: fixed arenas, the activations, their lower bound and what is live there.

use std::fmt;

use super::{Class, PlannedBytes, Program};
use crate::tape::{Arena, ParameterLayout};
use keel_base::units::bytes;

/// What a program takes, by class.
#[derive(Clone, Debug)]
pub struct MemoryReport {
    /// All parameters of the model, with their bf16 copies where the program reads those, also on their way to other ranks.
    pub parameters: u64,
    /// Gradients of what is trained, and their sums over some of the micro-batches where these are added in a tree.
    pub gradients: u64,
    /// What the optimiser keeps from step to step: both moments of AdamW, and what it keeps beside them.
    pub moments: u64,
    /// Its slots, by name.
    pub state: Vec<(&'static str, u64)>,
    /// The arena of activations.
    pub arena: u64,
    /// The largest sum of live bytes at any op: no arena can be smaller.
    pub lower_bound: u64,
    /// Live bytes at that op by class: inputs, saved for backward, transient, scratch.
    pub at_peak: [(Class, u64); 4],
    /// That op.
    pub peak_op: String,
    /// The largest live values there: name and bytes.
    pub largest: Vec<(String, u64)>,
    /// Floating-point operations of a step.
    pub flops: f64,
}

/// Live values that a report lists.
const LISTED: usize = 10;

impl MemoryReport {
    /// The memory of `program` with the parameters of `layout`.
    pub fn new(program: &Program, layout: &ParameterLayout) -> MemoryReport {
        let arena = |arena: Arena| {
            (program.arena_elements(arena, layout.elements()) * arena.element().size()) as u64
        };
        let state = program.optimizer_state();
        let planned = program.planned();
        let peak = program.peak();
        let live: Vec<&PlannedBytes> = peak.live.iter().map(|index| &planned[*index]).collect();
        let classes = [
            Class::Input,
            Class::Saved,
            Class::Transient,
            Class::Workspace,
        ];
        let at_peak = classes.map(|class| {
            (
                class,
                live.iter()
                    .filter(|p| p.class == class)
                    .map(|p| p.bytes)
                    .sum(),
            )
        });
        let peak_op = program
            .ops()
            .get(peak.op as usize)
            .map_or(String::new(), |op| op.instruction.label());
        MemoryReport {
            parameters: arena(Arena::Parameters)
                + arena(Arena::ParametersBf16)
                + arena(Arena::RoundedShard)
                + arena(Arena::WholeShard),
            gradients: arena(Arena::Gradients)
                + arena(Arena::GradientShard)
                + arena(Arena::PartialSums),
            moments: state.iter().map(|state| arena(state.arena)).sum(),
            state: state
                .iter()
                .map(|state| (state.name, arena(state.arena)))
                .collect(),
            arena: program.arena_bytes() as u64,
            lower_bound: program.lower_bound(),
            at_peak,
            peak_op,
            largest: live
                .iter()
                .take(LISTED)
                .map(|p| (p.name.clone(), p.bytes))
                .collect(),
            flops: program.cost().flops,
        }
    }

    /// Everything a run of the program allocates.
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.moments + self.arena
    }

    /// Arena ÷ lower bound.
    pub fn ratio(&self) -> f64 {
        match self.lower_bound {
            0 => 1.0,
            bound => self.arena as f64 / bound as f64,
        }
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  parameters   {:>11}", bytes(self.parameters))?;
        writeln!(f, "  gradients    {:>11}", bytes(self.gradients))?;
        write!(f, "  moments      {:>11}", bytes(self.moments))?;
        // Two moments of one size say nothing more.
        if self.state.len() > 2 {
            let slots = self.state.iter();
            let slots: Vec<String> = slots
                .map(|(name, count)| format!("{name} {}", bytes(*count)))
                .collect();
            write!(f, "   {}", slots.join(", "))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  activations  {:>11}   lower bound {}, ratio {:.3}",
            bytes(self.arena),
            bytes(self.lower_bound),
            self.ratio()
        )?;
        writeln!(f, "  total        {:>11}", bytes(self.total()))?;
        let classes: Vec<String> = self
            .at_peak
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(class, count)| format!("{} {}", class.name(), bytes(*count)))
            .collect();
        writeln!(
            f,
            "  the bound is reached at {}: {}",
            self.peak_op,
            classes.join(", ")
        )?;
        writeln!(f, "  largest there:")?;
        for (name, count) in &self.largest {
            writeln!(f, "    {:>11}  {name}", bytes(*count))?;
        }
        Ok(())
    }
}

impl Class {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Class::Input => "inputs",
            Class::Saved => "saved for backward",
            Class::Transient => "transient",
            Class::Workspace => "scratch",
        }
    }
}
