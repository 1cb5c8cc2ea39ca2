//! Ablations: one recipe refined in different ways, compared at equal compute over several seeds.
//!
//! Every unit, an arm under a seed, goes the same way: the recipe's warm start (shared between arms that agree on it), the
//! arm's stages of refinement, and then the same target training: a fresh connector on the refined tower, and the
//! language model as the warm start left it, so that only what happened to the tower tells arms apart. Results lie in
//! files of their own, so that an ablation that was stopped goes on where it was.

mod own_data;
mod plan;
mod results;
mod runner;
mod schedule;

pub use own_data::BenchmarkInputs;
pub use plan::{
    AblationPlan, Arm, BUILT_IN_PLANS, PrimaryTest, Quick, Spend, TargetForm, form_and_metric,
};
pub use results::{
    AblationResults, ArmSummary, EqualArms, MetricSummary, PrimaryResult, UnitResult,
};
pub use runner::{Ablation, AblationOptions, write_results};
pub use schedule::{Unit, UnitTarget, step_flops, units};
