//! What was agreed of each kernel: registers, shared memory, and the instructions it is built around. A change that takes
//! more, loses one, or makes a kernel use local memory is refused until the file says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;

use super::{Catalogue, Facts};
use keel_base::error::{Error, Result};

/// What was agreed of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared: u32,
    /// Registers of a thread for each architecture, at most.
    pub registers: BTreeMap<String, u32>,
    /// Instructions that its code has on every architecture.
    pub uses: BTreeSet<String>,
}

/// The agreed numbers of all kernels: the file `cuda/budget.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget(pub BTreeMap<String, Agreed>);

const HEADER: &str = "\
# What each kernel may take: registers of a thread by architecture, bytes of shared memory of a block, and the instructions
# its code is built around. `cargo tool kernels` fails on more, on a spill, on any use of local memory and on the
# assembler's warnings; `cargo tool kernels --write` writes this file anew. A line that changes is part of a review.

";

impl Budget {
    /// Reads the file's text; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Content`] when it is not of the form that [`Budget::write`] gives it.
    pub fn read(path: &str, text: &str) -> Result<Budget> {
        let kernels = toml::from_str(text).map_err(|problem| {
            Error::content(
                path,
                problem.message(),
                "write it anew with cargo tool kernels --write",
            )
        })?;
        Ok(Budget(kernels))
    }

    /// The numbers as they are.
    pub fn of(catalogue: &Catalogue) -> Budget {
        Budget(
            catalogue
                .kernels
                .iter()
                .map(|facts| (facts.name.to_owned(), agreed(facts)))
                .collect(),
        )
    }

    /// The file's text.
    pub fn write(&self) -> String {
        let mut text = HEADER.to_owned();
        for (kernel, agreed) in &self.0 {
            let registers: Vec<String> = agreed
                .registers
                .iter()
                .map(|(arch, registers)| format!("{arch} = {registers}"))
                .collect();
            let uses: Vec<String> = agreed.uses.iter().map(|u| format!("{u:?}")).collect();
            writeln!(
                text,
                "{kernel} = {{ shared = {}, registers = {{ {} }}, uses = [{}] }}",
                agreed.shared,
                registers.join(", "),
                uses.join(", "),
            )
            .expect("writing to a string cannot fail");
        }
        text
    }

    /// Everything that breaks the agreement, one sentence each; empty when all is well.
    pub fn problems(&self, catalogue: &Catalogue) -> Vec<String> {
        let mut problems = Vec::new();
        for facts in &catalogue.kernels {
            match self.0.get(facts.name) {
                Some(agreed) => problems.extend(breaches(facts, agreed)),
                None => problems.push(format!(
                    "{}: it is not in the budget; cargo tool kernels --write adds it",
                    facts.name
                )),
            }
            problems.extend(local_memory(facts));
        }
        for kernel in self.0.keys() {
            if !catalogue.kernels.iter().any(|facts| facts.name == kernel) {
                problems.push(format!(
                    "{kernel}: the budget names it, but cuda/ has no such kernel; cargo tool kernels --write drops it"
                ));
            }
        }
        for remark in &catalogue.remarks {
            problems.push(format!("the assembler warns: {remark}"));
        }
        problems
    }
}

/// The numbers of one kernel as they are.
fn agreed(facts: &Facts) -> Agreed {
    let mut uses: Option<BTreeSet<String>> = None;
    for mix in facts.codes.iter().filter_map(|code| code.mix.as_ref()) {
        let here: BTreeSet<String> = mix.landmarks().into_iter().map(str::to_owned).collect();
        // What both architectures use: an instruction that only one has is not a promise of the source.
        uses = Some(match uses {
            Some(uses) => uses.intersection(&here).cloned().collect(),
            None => here,
        });
    }
    Agreed {
        shared: shared(facts),
        registers: facts
            .codes
            .iter()
            .map(|code| (code.assembled.arch.clone(), code.assembled.registers))
            .collect(),
        uses: uses.unwrap_or_default(),
    }
}

fn shared(facts: &Facts) -> u32 {
    let fixed = facts.codes.iter().map(|c| c.assembled.static_shared_bytes);
    facts.shared_bytes + fixed.max().unwrap_or(0)
}

/// What a kernel takes beyond what was agreed.
fn breaches(facts: &Facts, agreed: &Agreed) -> Vec<String> {
    let name = facts.name;
    let mut problems = Vec::new();
    if shared(facts) > agreed.shared {
        problems.push(format!(
            "{name}: {} bytes of shared memory were agreed, but it takes {}",
            agreed.shared,
            shared(facts)
        ));
    }
    for code in &facts.codes {
        let (arch, registers) = (&code.assembled.arch, code.assembled.registers);
        match agreed.registers.get(arch) {
            Some(most) if registers > *most => problems.push(format!(
                "{name}: {most} registers were agreed on {arch}, but it takes {registers}"
            )),
            Some(_) => {}
            None => problems.push(format!("{name}: the budget has no registers for {arch}")),
        }
        for wanted in &agreed.uses {
            if code.mix.as_ref().is_some_and(|mix| mix.of(wanted) == 0) {
                problems.push(format!(
                    "{name}: its code for {arch} was agreed to use {wanted}, but has none"
                ));
            }
        }
    }
    problems
}

/// Spills, stack and any other use of local memory: never agreed.
fn local_memory(facts: &Facts) -> Vec<String> {
    let mut problems = Vec::new();
    for code in &facts.codes {
        let (name, arch, a) = (facts.name, &code.assembled.arch, &code.assembled);
        if a.spill_store_bytes + a.spill_load_bytes > 0 {
            problems.push(format!(
                "{name}: on {arch} registers spill, {} bytes stored and {} loaded by a thread",
                a.spill_store_bytes, a.spill_load_bytes
            ));
        }
        if a.stack_bytes > 0 {
            problems.push(format!(
                "{name}: on {arch} it has a stack of {} bytes a thread; index its arrays by constants",
                a.stack_bytes
            ));
        }
        if let Some(local) = code.mix.as_ref().map(super::Mix::local).filter(|n| *n > 0) {
            problems.push(format!(
                "{name}: on {arch} its code has {local} accesses to local memory"
            ));
        }
    }
    problems
}
