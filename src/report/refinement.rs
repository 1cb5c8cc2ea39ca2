//! Whether refinement paid in one run: its target stage against the control, which is the same training from other modules.

use keel_eval::{Evaluation, PairedTest, clustered_test};
use keel_train::{Recipe, StageKind};

/// A line for each control of the recipe that was evaluated, and whose target was: how many more questions the target answers rightly,
/// with the 95 % interval over images. It is of one run: another seed draws other batches.
pub fn refinement_lines(recipe: &Recipe, evaluations: &[Evaluation]) -> Vec<String> {
    let of_stage = |name: &str| evaluations.iter().find(|e| e.stage == name);
    let controls = recipe
        .stages
        .iter()
        .filter(|stage| stage.kind == StageKind::Control);
    let lines = controls.filter_map(|control| {
        let target = of_stage(control.control_of.as_deref()?)?;
        let (questions, test) = difference(target, of_stage(&control.name)?)?;
        let restored: Vec<String> = control
            .restore
            .iter()
            .map(|(module, origin)| match origin.as_str() {
                keel_train::INITIAL => format!("{module} as it was given"),
                origin => format!("{module} of {origin}"),
            })
            .collect();
        let half = test.difference.half_width?;
        let mean = test.difference.mean;
        let verdict = match () {
            () if mean.abs() <= half => "no difference shown",
            () if mean > 0.0 => "refinement paid",
            () => "refinement cost more than it gave",
        };
        Some(format!(
            "{verdict}: {} − {} ({}) = {:+.1} ± {:.1} points of {questions} questions about {} images",
            target.stage,
            control.name,
            restored.join(", "),
            100.0 * mean,
            100.0 * half,
            test.difference.count,
        ))
    });
    lines.collect()
}

/// Right answers of `own` less those of `other` over all sets, with all questions about one image as one draw, and how many questions
/// there are. Nothing where they were not asked the same.
fn difference(own: &Evaluation, other: &Evaluation) -> Option<(usize, PairedTest)> {
    let mut differences: Vec<(String, f64)> = Vec::new();
    if own.questions.len() != other.questions.len() {
        return None;
    }
    for (own, other) in own.questions.iter().zip(&other.questions) {
        let both = || own.answers.iter().zip(&other.answers);
        let is_same = own.set() == other.set() && own.answers.len() == other.answers.len();
        if !is_same || !both().all(|((own, _), (other, _))| own == other) {
            return None;
        }
        // One drawing of a thing is not that of another style.
        let set = own.set();
        differences.extend(both().map(|((image, own), (_, other))| {
            let [own, other] = [own, other].map(|is_right| f64::from(u8::from(*is_right)));
            (format!("{set}/{image}"), own - other)
        }));
    }
    if differences.is_empty() {
        return None;
    }
    let named = differences.iter().map(|(image, of)| (image.as_str(), *of));
    Some((differences.len(), clustered_test(named)))
}
