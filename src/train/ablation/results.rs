//! What came out: a result for each arm and seed, and for each arm means, intervals and paired tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::AblationPlan;
use crate::run::RunInputs;
use keel_eval::{Evaluation, Interval, Measurements, PairedTest, interval, paired_test};

/// One arm under one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitResult {
    /// The arm's name.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// A hash of everything that the result depends on.
    pub key: String,
    /// Floating-point operations of the warm start.
    pub warm_flops: f64,
    /// Floating-point operations of the refinement.
    pub refinement_flops: f64,
    /// A hash of the unit's own settings: another unit under the same name has another.
    #[serde(default)]
    pub settings: String,
    /// The data that it read and what computed it.
    #[serde(default)]
    pub inputs: RunInputs,
    /// Checksums of the published weights that it began from, with their folders.
    #[serde(default)]
    pub weights: Vec<(String, String)>,
    /// Steps of each stage that was run.
    pub steps: Vec<(String, u64)>,
    /// Every number that is compared.
    pub metrics: BTreeMap<String, f64>,
    /// The whole evaluation after the target stage.
    pub evaluation: Evaluation,
    /// What else was measured then.
    pub measurements: Measurements,
}

/// One metric of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricSummary {
    /// The values by seed, in the plan's order.
    pub values: Vec<f64>,
    /// Their mean and interval.
    pub interval: Interval,
    /// The test of this arm against the one it names, on the seeds that both have.
    pub test: Option<PairedTest>,
}

/// One arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmSummary {
    /// Its name.
    pub arm: String,
    /// The arm it is tested against.
    pub against: Option<String>,
    /// Seeds that are done.
    pub seeds: Vec<u64>,
    /// Floating-point operations before the target stage, warm start included.
    pub flops: f64,
    /// Every metric.
    pub metrics: BTreeMap<String, MetricSummary>,
}

/// All of an ablation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblationResults {
    /// The plan that was run.
    pub plan: AblationPlan,
    /// Whether it was its quick form.
    pub quick: bool,
    /// The arms in the plan's order.
    pub arms: Vec<ArmSummary>,
    /// Every result.
    pub units: Vec<UnitResult>,
}

impl AblationResults {
    /// Summarises results, which may still be incomplete.
    pub fn new(plan: &AblationPlan, quick: bool, units: Vec<UnitResult>) -> AblationResults {
        let of_arm = |name: &str| -> Vec<&UnitResult> {
            units.iter().filter(|unit| unit.arm == name).collect()
        };
        let arms = plan
            .arms
            .iter()
            .map(|arm| {
                let own = of_arm(&arm.name);
                let others = arm.against.as_deref().map(of_arm).unwrap_or_default();
                let mut metrics = BTreeMap::new();
                for name in own.iter().flat_map(|unit| unit.metrics.keys()) {
                    metrics
                        .entry(name.clone())
                        .or_insert_with(|| summarise(name, &own, &others));
                }
                ArmSummary {
                    arm: arm.name.clone(),
                    against: arm.against.clone(),
                    seeds: own.iter().map(|unit| unit.seed).collect(),
                    flops: own
                        .first()
                        .map_or(0.0, |unit| unit.warm_flops + unit.refinement_flops),
                    metrics,
                }
            })
            .collect();
        AblationResults {
            plan: plan.clone(),
            quick,
            arms,
            units,
        }
    }
}

fn summarise(name: &str, own: &[&UnitResult], others: &[&UnitResult]) -> MetricSummary {
    let values: Vec<f64> = own
        .iter()
        .filter_map(|unit| unit.metrics.get(name).copied())
        .collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for unit in own {
        let other = others.iter().find(|other| other.seed == unit.seed);
        let other = other.and_then(|other| other.metrics.get(name));
        if let (Some(value), Some(other)) = (unit.metrics.get(name), other) {
            ours.push(*value);
            theirs.push(*other);
        }
    }
    MetricSummary {
        interval: interval(&values),
        values,
        test: (!ours.is_empty()).then(|| paired_test(&ours, &theirs)),
    }
}
