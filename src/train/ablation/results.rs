//! What came out: a result for each arm and seed, and for each arm means, intervals and paired tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::own_data::BenchmarkInputs;
use super::plan::{AblationPlan, PrimaryTest};
use crate::run::RunInputs;
use keel_eval::{Evaluation, Interval, Measurements, PairedTest, holm, interval, paired_test};

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
    /// Floating-point operations of one run of each form of the target, with the form's name.
    #[serde(default)]
    pub target_flops: Vec<(String, f64)>,
    /// A hash of the unit's own settings: another unit under the same name has another.
    #[serde(default)]
    pub settings: String,
    /// The data that it read and what computed it.
    #[serde(default)]
    pub inputs: RunInputs,
    /// Checksums of the published weights that it began from, with their folders.
    #[serde(default)]
    pub weights: Vec<(String, String)>,
    /// The benchmark that it answered, where the plan has one.
    #[serde(default)]
    pub benchmark: Option<BenchmarkInputs>,
    /// Steps of each stage that was run.
    pub steps: Vec<(String, u64)>,
    /// Every number that is compared: those of the first form of the target under their names, those of another form with its
    /// name before them, `co-trained/questions.seen_style`. The mean over the draws of a form.
    pub metrics: BTreeMap<String, f64>,
    /// The whole evaluation after the target stage: the first draw of the first form.
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

/// A test that the plan is decided by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrimaryResult {
    /// What is tested.
    pub planned: PrimaryTest,
    /// The test on the seeds that both arms have; nothing where there are none.
    pub test: Option<PairedTest>,
    /// Its p with Holm's correction over all tests of the plan.
    pub adjusted_p: Option<f64>,
}

/// Whether an arm that cannot differ from another one does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EqualArms {
    /// The arm.
    pub arm: String,
    /// The one it equals.
    pub equals: String,
    /// Seeds that both have.
    pub seeds: usize,
    /// Numbers that were held against each other.
    pub numbers: usize,
    /// Those that differ in any seed, in any bit.
    pub differing: Vec<String>,
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
    /// Floating-point operations of one run of each form of the target.
    #[serde(default)]
    pub target_flops: Vec<(String, f64)>,
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
    /// The tests that the plan is decided by.
    #[serde(default)]
    pub primary: Vec<PrimaryResult>,
    /// The controls of the comparison itself.
    #[serde(default)]
    pub equal: Vec<EqualArms>,
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
            .filter(|arm| plan.runs(arm, quick))
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
                    target_flops: own
                        .first()
                        .map_or(Vec::new(), |unit| unit.target_flops.clone()),
                    metrics,
                }
            })
            .collect();
        let equal = plan.arms.iter().filter(|arm| plan.runs(arm, quick));
        let equal = equal.filter_map(|arm| {
            let equals = arm.equals.as_deref()?;
            Some(held_equal(
                &arm.name,
                equals,
                &of_arm(&arm.name),
                &of_arm(equals),
            ))
        });
        AblationResults {
            primary: decided(plan, of_arm),
            equal: equal.collect(),
            plan: plan.clone(),
            quick,
            arms,
            units,
        }
    }

    /// The seeds of the form that was run.
    pub fn seeds(&self) -> &[u64] {
        if self.quick {
            &self.plan.quick.seeds
        } else {
            &self.plan.seeds
        }
    }
}

/// The plan's tests on what there is.
fn decided<'a>(
    plan: &AblationPlan,
    of_arm: impl Fn(&str) -> Vec<&'a UnitResult>,
) -> Vec<PrimaryResult> {
    let tests: Vec<Option<PairedTest>> = plan
        .tests
        .iter()
        .map(|test| {
            let (own, others) = (of_arm(&test.arm), of_arm(&test.against));
            summarise(&test.metric, &own, &others).test
        })
        .collect();
    let p: Vec<Option<f64>> = tests.iter().map(|test| test.as_ref()?.p).collect();
    let all = plan.tests.iter().zip(tests).zip(holm(&p));
    all.map(|((planned, test), adjusted_p)| PrimaryResult {
        planned: planned.clone(),
        test,
        adjusted_p,
    })
    .collect()
}

/// Holds two arms to each other, number by number and bit by bit.
fn held_equal(arm: &str, equals: &str, own: &[&UnitResult], others: &[&UnitResult]) -> EqualArms {
    let mut held = EqualArms {
        arm: arm.to_owned(),
        equals: equals.to_owned(),
        seeds: 0,
        numbers: 0,
        differing: Vec::new(),
    };
    for unit in own {
        let Some(other) = others.iter().find(|other| other.seed == unit.seed) else {
            continue;
        };
        held.seeds += 1;
        // The other may go through more forms of the target.
        for (name, value) in &unit.metrics {
            let Some(known) = other.metrics.get(name) else {
                continue;
            };
            held.numbers += 1;
            if known.to_bits() != value.to_bits() && !held.differing.contains(name) {
                held.differing.push(name.clone());
            }
        }
    }
    held
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
