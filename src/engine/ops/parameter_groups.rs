//! Parameter groups: which trained parameters learn at what rate and decay by how much.
//!
//! A group is a row of a table, chosen for each parameter by its name and by whether decay applies to it. The assignment is
//! part of a recorded update; the two numbers of each group are data, written before every step, so that schedules and
//! layer-wise factors (Clark et al. 2020, section 3.2) need no other program.

use crate::tape::ParameterSpec;
use keel_base::error::{Error, Result};

/// Numbers of a group in the input [`super::OptimizerInput::GroupScalars`]: learning rate η and weight decay λ.
pub const GROUP_SCALARS: usize = 2;

/// How a parameter is updated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Optimizer {
    /// By AdamW.
    #[default]
    AdamW,
    /// By Muon, which takes matrices alone.
    Muon {
        /// μ.
        momentum: f64,
    },
}

/// Parameters that are updated alike.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGroup {
    /// Names of the parameters it takes, any of these; `*` stands for any run of characters, as in `vision.blocks.3.*`.
    pub patterns: Vec<String>,
    /// Takes only parameters that are declared to decay, or only those that are not; `None` takes both.
    pub decays: Option<bool>,
    /// Factor of the step's learning rate.
    pub learning_rate_factor: f64,
    /// Decoupled weight decay λ.
    pub weight_decay: f64,
    /// By what they are updated.
    pub optimizer: Optimizer,
}

impl ParameterGroup {
    /// Whether the group takes this parameter.
    pub fn takes(&self, parameter: &ParameterSpec) -> bool {
        let decays = self.decays.unwrap_or(parameter.decays);
        let mut patterns = self.patterns.iter();
        decays == parameter.decays && patterns.any(|pattern| matches(pattern, &parameter.name))
    }
}

/// A table of groups. A parameter belongs to the first that takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGroups {
    groups: Vec<ParameterGroup>,
}

impl ParameterGroups {
    /// A table of `groups`, those that come first before the others.
    ///
    /// # Errors
    /// [`Error::Setting`] when there are none.
    pub fn new(groups: Vec<ParameterGroup>) -> Result<ParameterGroups> {
        if groups.is_empty() {
            return Err(Error::setting("parameter groups", "at least one", "none"));
        }
        Ok(ParameterGroups { groups })
    }

    /// Two groups at one learning rate: what is declared to decay, by `weight_decay`, and the rest, not at all.
    pub fn decaying(weight_decay: f64) -> ParameterGroups {
        let group = |decays: bool| ParameterGroup {
            patterns: vec!["*".into()],
            decays: Some(decays),
            learning_rate_factor: 1.0,
            weight_decay: if decays { weight_decay } else { 0.0 },
            optimizer: Optimizer::AdamW,
        };
        ParameterGroups {
            groups: vec![group(true), group(false)],
        }
    }

    /// The groups in order.
    pub fn groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// The index of the group that a parameter belongs to.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the parameter when no group takes it: what is trained needs a learning rate.
    pub fn index_of(&self, parameter: &ParameterSpec) -> Result<usize> {
        let found = self.groups.iter().position(|group| group.takes(parameter));
        found.ok_or_else(|| {
            let patterns = self.groups.iter().flat_map(|group| &group.patterns);
            let patterns: Vec<&str> = patterns.map(String::as_str).collect();
            Error::setting(
                format!("the parameter group of {}", parameter.name),
                "a group that takes it; a last one of the pattern * takes what is left",
                format!("none among {}", patterns.join(", ")),
            )
        })
    }

    /// The input [`super::OptimizerInput::GroupScalars`], f32 [groups, 2], at the step's `learning_rate`.
    pub fn scalars(&self, learning_rate: f64) -> Vec<f32> {
        let numbers = |group: &ParameterGroup| {
            let rate = learning_rate * group.learning_rate_factor;
            [rate as f32, group.weight_decay as f32]
        };
        self.groups.iter().flat_map(numbers).collect()
    }
}

/// Whether `name` is of the form `pattern`, in which each `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut rest) = name.strip_prefix(before) else {
        return false;
    };
    // What stands between two stars may as well be found at its first place: whatever follows it then has the longest rest.
    let mut parts: Vec<&str> = after.split('*').collect();
    let last = parts.pop().expect("splitting gives at least one part");
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
