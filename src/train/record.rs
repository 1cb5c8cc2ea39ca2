//! What a run leaves behind for its report beside checkpoints: rows of metrics.jsonl, event files, the drawn memory of
//! each stage and what there is to look at after it.

use super::meter::Interval;
use super::recipe::Stage;
use super::step_program::whole_step_flops;
use super::trainer::Trainer;
use keel_base::error::Result;
use keel_eval::{Evaluation, Exhibits};
use keel_engine::program::{MemoryReport, Program, draw_memory};

/// The folder of a run with what there is to look at, a file a stage.
pub(super) const EXHIBITS: &str = "exhibits";
/// The folder of a run with the drawn memory of each stage.
pub(super) const MEMORY: &str = "memory";

impl Trainer {
    /// What runs, and on what.
    pub(super) fn record_start(&mut self, resumed_at: Option<&str>) -> Result<()> {
        let row = serde_json::json!({
            "kind": "run",
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.executor.describe(),
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "resumed_at": resumed_at,
        });
        self.folder.metric(&row)
    }

    /// What a stage is going to do and to take. `steps` are all of its steps.
    pub(super) fn record_stage(
        &mut self,
        label: &str,
        stage: &Stage,
        steps: u64,
        program: &Program,
    ) -> Result<()> {
        let memory = MemoryReport::new(program, &self.layout);
        let row = serde_json::json!({
            "kind": "stage",
            "stage": stage.name,
            "steps": steps,
            "batch": stage.batch,
            "trains": stage.trains,
            "parameters_trained": self.trained(stage),
            "micro_batch": stage.micro_batch(),
            "flops": whole_step_flops(program, stage),
            "parameter_bytes": memory.parameters,
            "gradient_bytes": memory.gradients,
            "moment_bytes": memory.moments,
            "activation_bytes": memory.arena,
            "lower_bound_bytes": memory.lower_bound,
        });
        self.folder.metric(&row)?;
        let drawing = draw_memory(program, &format!("Memory of one step of {}", stage.name));
        self.folder
            .write_in(MEMORY, &format!("{label}.svg"), drawing.as_bytes())
    }

    /// The numbers since the last line.
    pub(super) fn record_steps(
        &mut self,
        stage: &Stage,
        step: u64,
        interval: &Interval,
    ) -> Result<()> {
        self.folder.metric(&interval.row(&stage.name, step))?;
        let scalars = interval.scalars();
        let scalars = scalars.into_iter();
        let tagged: Vec<_> = scalars
            .map(|(tag, value)| (format!("{}/{tag}", stage.name), value))
            .collect();
        self.folder.scalars(step, &tagged)
    }

    /// What a stage was worth. `number` counts stages from 1.
    pub(super) fn record_evaluation(
        &mut self,
        number: usize,
        evaluation: &Evaluation,
        exhibits: &Exhibits,
    ) -> Result<()> {
        let mut row = serde_json::to_value(evaluation).expect("an evaluation is plain data");
        row["kind"] = "evaluation".into();
        self.folder.metric(&row)?;
        self.folder.scalars(number as u64, &evaluation.scalars())?;
        let text = serde_json::to_string(exhibits).expect("exhibits are plain data");
        let name = format!("{number}-{}.json", exhibits.stage);
        self.folder.write_in(EXHIBITS, &name, text.as_bytes())
    }

    /// Prints a line that a report repeats.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Io`] when the log cannot be written.
    pub(super) fn warn(&mut self, line: &str) -> Result<()> {
        self.say(line)?;
        let row = serde_json::json!({"kind": "warning", "text": line.trim()});
        self.folder.metric(&row)
    }
}
