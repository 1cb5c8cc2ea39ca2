//! A task as recipes, reports and random streams know it.

use std::fmt;

/// A kind of training data that a recipe can give a weight. Whoever makes its samples declares it; tasks are told apart by
/// their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// What tells its random draws from those of other tasks, below 128. Changing it changes every run.
    pub number: u8,
    /// The name in recipes and reports.
    pub name: &'static str,
    /// Whether its samples have an image, as all but some of a user's do; others have no part in a contrastive loss.
    pub has_images: bool,
}

impl Task {
    /// The user's own samples, given with `--data`.
    pub const SAMPLES: Task = Task {
        number: 5,
        name: "samples",
        has_images: true,
    };
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
