//! How far parameters moved: a direct reading of how gradual a refinement was.

use serde::{Deserialize, Serialize};

use keel_engine::tape::ParameterLayout;

/// How far a group of parameters moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightDrift {
    /// The module, such as `vision`, or a block of one, such as `vision.blocks.2`.
    pub group: String,
    /// ‖θ − θ₀‖₂.
    pub distance: f64,
    /// ‖θ − θ₀‖₂ / ‖θ₀‖₂; infinite where a group began at zero and moved.
    pub relative: f64,
}

/// The module a parameter belongs to, then its block where it has one.
fn groups(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let mut groups = vec![parts[0].to_owned()];
    if let [module, "blocks", index, _, ..] = parts[..] {
        groups.push(format!("{module}.blocks.{index}"));
    }
    groups
}

/// How far each module and each of its blocks is from where it was, in the layout's order. Both slices are whole
/// parameter arenas.
pub fn weight_drift(layout: &ParameterLayout, before: &[f32], after: &[f32]) -> Vec<WeightDrift> {
    let mut sums: Vec<(String, f64, f64)> = Vec::new();
    for entry in layout.entries() {
        let range = entry.offset..entry.offset + entry.spec.shape.numel();
        let (mut moved, mut size) = (0.0, 0.0);
        for (before, after) in before[range.clone()].iter().zip(&after[range]) {
            moved += (f64::from(*after) - f64::from(*before)).powi(2);
            size += f64::from(*before).powi(2);
        }
        // A parameter counts for its module and for its block.
        for group in groups(&entry.spec.name) {
            match sums.iter_mut().find(|(name, _, _)| *name == group) {
                Some((_, all_moved, all_size)) => {
                    *all_moved += moved;
                    *all_size += size;
                }
                None => sums.push((group, moved, size)),
            }
        }
    }
    sums.into_iter()
        .map(|(group, moved, size)| WeightDrift {
            group,
            distance: moved.sqrt(),
            relative: if moved > 0.0 {
                (moved / size).sqrt()
            } else {
                0.0
            },
        })
        .collect()
}
