//! `keel plan`.

mod ranks;
mod tier;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use self::ranks::RanksArgs;
use super::values::{count, size};
use super::{ComputeArgs, RecipeArgs, heading, print_line};
use keel_base::error::{Error, Result};
use keel_base::units::{bytes, counted, flops, grouped};
use keel_data::chat::ChatTokenizer;
use keel_engine::program::{MemoryReport, Program, draw_memory};
use keel_engine::tape::{CompileTarget, ParameterLayout, Target, Tier};
use keel_model::{TEACHER, declare};
use keel_train::{
    Recipe, Stage, ValidationPlan, compile_step, largest_micro_batch, whole_step_flops,
    write_durably,
};

/// Options of `keel plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    // The device need not be there.
    #[command(flatten)]
    compute: ComputeArgs,
    /// Plan one stage only.
    #[arg(long, value_name = "NAME", help_heading = heading::RUN)]
    stage: Option<String>,
    /// Samples per batch, in place of the recipe's.
    #[arg(long, value_name = "N", value_parser = count, help_heading = heading::RUN)]
    batch: Option<usize>,
    /// Upper limit on the activations of a step, for example 40G, met by recomputing some of them in the backward pass.
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = heading::MEMORY)]
    memory_budget: Option<u64>,
    /// Also show the largest micro-batch with which each stage fits into this much memory, for example 80G.
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = heading::MEMORY)]
    memory_limit: Option<u64>,
    /// Draw the memory of each stage, address by time, as PATH-<stage>.svg.
    #[arg(long, value_name = "PATH", help_heading = heading::MEMORY)]
    svg: Option<PathBuf>,
    /// Also show what a validation takes beside each stage, as keel train --validate runs it.
    #[arg(long, help_heading = heading::MEMORY)]
    validate: bool,
    #[command(flatten)]
    ranks: RanksArgs,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.sets)?;
    let plans = Plans {
        recipe: &recipe,
        batch: args.batch,
        compile_target: args.compute.compile_target()?,
        memory_budget: args.memory_budget,
        memory_limit: args.memory_limit,
        validates: args.validate,
    };
    match args.ranks.ranks {
        None => plans.print(args.stage.as_deref(), args.svg.as_deref()),
        Some(_) if args.svg.is_some() => {
            let want = "a drawing of one device, without --ranks";
            Err(Error::setting("--svg", want, "both"))
        }
        Some(ranks) => {
            let stages = plans.stages(args.stage.as_deref(), true)?;
            let text = ranks::text(&plans, &args.ranks, ranks, &stages)?;
            print_line(text.trim_end())
        }
    }
}

/// The plans of a recipe's stages.
pub(super) struct Plans<'a> {
    pub recipe: &'a Recipe,
    pub batch: Option<usize>,
    pub compile_target: CompileTarget,
    pub memory_budget: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Whether validations are planned too.
    pub validates: bool,
}

impl Plans<'_> {
    /// Prints the memory of one stage or all, and draws it where `svg` says. Nothing is printed before everything is known:
    /// half a plan above an error reads like a whole one.
    ///
    /// # Errors
    /// Whatever planning reports; [`keel_base::error::Error::Io`] when a drawing cannot be written.
    pub fn print(&self, stage: Option<&str>, svg: Option<&Path>) -> Result<()> {
        let layout = declare(&self.recipe.model, self.recipe.contrastive_loss)?;
        let mut text = format!("planned for {}\nmodel:\n", described(self.compile_target));
        for module in layout.modules() {
            let count = layout.count(|m| m == module) as u64;
            let _ = writeln!(text, "  {module:<12} {:>13} parameters", grouped(count));
        }
        let mut drawings = Vec::new();
        for stage in &self.stages(stage, false)? {
            let program = self.compile(stage, &layout)?;
            let report = MemoryReport::new(&program, &layout);
            let samples = counted(stage.batch_size as u64, "sample");
            let samples = match stage.micro_batches() {
                1 => samples,
                _ => format!("{samples}, {} at once,", stage.micro_batch()),
            };
            let _ = writeln!(
                text,
                "\nstage {}: trains {}; {samples} and {} a step",
                stage.name,
                stage.trained_parts(),
                flops(whole_step_flops(&program, stage)),
            );
            text.push_str(&peak_rates(stage, &layout)?);
            let _ = writeln!(text, "{}", report.to_string().trim_end());
            text.push_str(&tier::text(&program));
            text.extend(self.validation(stage, &layout)?);
            text.extend(self.saving(stage, &layout, &report)?);
            text.extend(self.largest(stage, &layout));
            if let Some(path) = svg {
                let name = format!("{}-{}.svg", path.display(), stage.name);
                let title = format!("{}, stage {}", self.recipe.name, stage.name);
                let _ = writeln!(text, "  drawn in {name}");
                drawings.push((name, draw_memory(&program, &title)));
            }
        }
        for (name, drawing) in drawings {
            write_durably(Path::new(&name), drawing.as_bytes())?;
        }
        print_line(text.trim_end())
    }

    /// The stage of that name, or all, with the batch that was asked for: at once, or divided as the recipe divides its own
    /// where it can be.
    fn stages(&self, stage: Option<&str>, is_divided: bool) -> Result<Vec<Stage>> {
        let stages: Vec<&Stage> = match stage {
            Some(name) => vec![self.recipe.stage(name)?],
            None => self.recipe.stages.iter().collect(),
        };
        let with_batch = |stage: &Stage| match self.batch {
            Some(batch) => Stage {
                batch_size: batch,
                micro_batch_size: stage
                    .micro_batch_size
                    .filter(|size| is_divided && batch.is_multiple_of(*size)),
                ..stage.clone()
            },
            None => stage.clone(),
        };
        Ok(stages.into_iter().map(with_batch).collect())
    }

    fn compile(&self, stage: &Stage, layout: &Arc<ParameterLayout>) -> Result<Program> {
        // Which id stands for an image token changes no size.
        let shape = self
            .recipe
            .batch_shape(stage, ChatTokenizer::embedded().image());
        compile_step(
            self.recipe,
            stage,
            layout,
            &shape,
            self.compile_target,
            self.memory_budget,
        )
    }

    /// A line for the largest micro-batch within the limit, where one was given.
    fn largest(&self, stage: &Stage, layout: &Arc<ParameterLayout>) -> Option<String> {
        let limit = self.memory_limit?;
        let (recipe, compile_target, budget) =
            (self.recipe, self.compile_target, self.memory_budget);
        let found = largest_micro_batch(recipe, stage, layout, compile_target, limit, budget);
        let within = format!("within {}", bytes(limit));
        Some(match found {
            Some(size) => format!(
                "  largest micro-batch {within}: {size} of {}\n",
                stage.batch_size
            ),
            None => format!("  not one sample fits {within}\n"),
        })
    }

    /// A line for what a validation of the stage takes, where that is asked for.
    fn validation(&self, stage: &Stage, layout: &Arc<ParameterLayout>) -> Result<Option<String>> {
        let Some(settings) = stage.validated().filter(|_| self.validates) else {
            return Ok(None);
        };
        let image = ChatTokenizer::embedded().image();
        let (target, samples) = (self.compile_target, settings.samples);
        let plan = ValidationPlan::new(self.recipe, stage, layout, image, target, samples)?;
        let taken = bytes(plan.bytes());
        Ok(Some(format!(
            "  validation   {taken:>11}   beside the total, while the stage is validated\n"
        )))
    }

    /// A line for what freezing the other modules saves against training every module the stage uses.
    fn saving(
        &self,
        stage: &Stage,
        layout: &Arc<ParameterLayout>,
        report: &MemoryReport,
    ) -> Result<Option<String>> {
        let mut unfrozen = stage.clone();
        // The teacher is frozen in every stage.
        let modules = layout.modules().into_iter();
        let modules = modules.filter(|module| *module != TEACHER);
        unfrozen.trains = modules.map(str::to_owned).collect();
        unfrozen.freeze.clear();
        let unfrozen = MemoryReport::new(&self.compile(&unfrozen, layout)?, layout);
        Ok((unfrozen.total() > report.total()).then(|| {
            format!(
                "  freezing saves {} of the {} that training every module would take\n",
                bytes(unfrozen.total() - report.total()),
                bytes(unfrozen.total()),
            )
        }))
    }
}

/// A line for the learning rates of modules, where they are not all the stage's.
fn peak_rates(stage: &Stage, layout: &ParameterLayout) -> Result<String> {
    let rates = stage.peak_rates(layout)?.into_iter();
    let rates = rates.map(|(module, [least, most])| match least == most {
        true => format!("{module} {most:.2e}"),
        false => format!("{module} {least:.2e} to {most:.2e}"),
    });
    let rates: Vec<String> = rates.collect();
    Ok(match rates.is_empty() {
        true => String::new(),
        false => format!("  learning rates  {}\n", rates.join(", ")),
    })
}

/// What programs are made for, in words.
fn described(compile_target: CompileTarget) -> String {
    let precision = compile_target.precision;
    match compile_target.target {
        Target::Cpu { threads } => {
            let threads = counted(threads as u64, "thread");
            format!("cpu, {threads}, {precision}")
        }
        Target::Cuda => match compile_target.tier {
            Tier::Portable => format!("cuda, {precision}"),
            tier => format!("cuda, {precision}, kernels of the {tier} tier"),
        },
        Target::Reference => format!("the reference, {precision}"),
    }
}
