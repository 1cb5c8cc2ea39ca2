//! Which ops of a program take kernels of its tier, and why the others do not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use keel_engine::program::Program;
use keel_engine::tape::Tier;

/// Lines of ops by what their kernels are: `  Hopper tier  linear 24`, then those that keep to portable kernels with the
/// reason. Nothing for a program of the portable tier.
pub(super) fn text(program: &Program) -> String {
    let tier = program.compile_target().tier;
    let mut text = String::new();
    if tier == Tier::Portable {
        return text;
    }
    let mut counts: BTreeMap<Option<String>, BTreeMap<&str, usize>> = BTreeMap::new();
    for planned in program.ops() {
        let instruction = &planned.instruction;
        if instruction.op.is_view() || instruction.op.collective().is_some() {
            continue;
        }
        let [inputs, outputs] = instruction.types(program.values());
        let reason = instruction.op.keeps_portable(&inputs, &outputs, tier);
        *counts
            .entry(reason)
            .or_default()
            .entry(instruction.op.name())
            .or_default() += 1;
    }
    for (reason, ops) in counts {
        let ops: Vec<String> = ops
            .into_iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let ops = ops.join(", ");
        let _ = match reason {
            None => writeln!(text, "  {tier} tier  {ops}"),
            Some(reason) => writeln!(text, "  portable     {ops}: {reason}"),
        };
    }
    text
}
