//! `keel plan`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::{Precision, RecipeArgs, at_least_one, grouped, parse_bytes, print_line};
use keel_base::error::{Error, Result};
use keel_engine::program::{MemoryReport, Program, bytes, draw_memory};
use keel_engine::tape::{Machine, ParameterLayout, Target};
use keel_engine::tensor::DType;
use keel_model::declare;
use keel_train::{
    Recipe, Stage, compile_step, largest_micro_batch, step_shape, whole_step_flops, write_durably,
};

/// Options of `keel plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// One stage; all of them by default.
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Samples of a batch, in place of the recipe's.
    #[arg(long, value_name = "B", value_parser = at_least_one)]
    batch: Option<u64>,
    /// Threads that compute: scratch memory depends on them.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    threads: u64,
    /// Plans for the processor or for a GPU, whether it is there or not.
    #[arg(long, value_enum, default_value = "cpu")]
    device: PlannedDevice,
    /// How numbers are stored: bf16 by default on a GPU, f32 on the processor.
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// The most memory for a step's activations, for example 40G; met by computing some of them twice.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
    /// Says the largest micro-batch with which each stage takes at most this much in all, for example 80G.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_limit: Option<u64>,
    /// Draws each stage's arena, address by time, as PATH-<stage>.svg.
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
}

/// Where a planned step would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlannedDevice {
    /// The processor.
    Cpu,
    /// A CUDA device.
    Gpu,
}

impl PlanArgs {
    /// What the plan is for.
    ///
    /// # Errors
    /// [`Error::Setting`] for bf16 on the processor.
    fn machine(&self) -> Result<Machine> {
        let (target, default) = match self.device {
            PlannedDevice::Cpu => {
                let threads = self.threads as usize;
                (Target::Cpu { threads }, DType::F32)
            }
            PlannedDevice::Gpu => (Target::Cuda, DType::Bf16),
        };
        let precision = self.precision.map_or(default, DType::from);
        if self.device == PlannedDevice::Cpu && precision != DType::F32 {
            return Err(Error::setting(
                "--precision",
                "f32 on the processor (bf16 needs --device gpu)",
                precision,
            ));
        }
        Ok(Machine {
            precision,
            ..target.into()
        })
    }
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.sets)?;
    let plans = Plans {
        recipe: &recipe,
        batch: args.batch.map(|batch| batch as usize),
        machine: args.machine()?,
        memory_budget: args.memory_budget,
        memory_limit: args.memory_limit,
    };
    plans.print(args.stage.as_deref(), args.svg.as_deref())
}

/// The plans of a recipe's stages.
pub(super) struct Plans<'a> {
    pub recipe: &'a Recipe,
    pub batch: Option<usize>,
    pub machine: Machine,
    pub memory_budget: Option<u64>,
    pub memory_limit: Option<u64>,
}

impl Plans<'_> {
    /// Prints the memory of one stage or all, and draws it where `svg` says.
    ///
    /// # Errors
    /// Whatever planning reports; [`keel_base::error::Error::Io`] when a drawing cannot be written.
    pub fn print(&self, stage: Option<&str>, svg: Option<&Path>) -> Result<()> {
        let layout = declare(&self.recipe.model, self.recipe.contrastive_form.into())?;
        print_line("model:")?;
        for module in layout.modules() {
            print_line(format!(
                "  {module:<12} {:>13} parameters",
                grouped(layout.count(|m| m == module))
            ))?;
        }
        let stages: Vec<&Stage> = match stage {
            Some(name) => vec![self.recipe.stage(name)?],
            None => self.recipe.stages.iter().collect(),
        };
        for stage in stages {
            let stage = &match self.batch {
                Some(batch) => Stage {
                    batch,
                    micro_batch: None,
                    ..stage.clone()
                },
                None => stage.clone(),
            };
            let program = self.compile(stage, &layout)?;
            let report = MemoryReport::new(&program, &layout);
            let samples = match stage.micro_batches() {
                1 => format!("{} samples", stage.batch),
                _ => format!("{} samples, {} at once,", stage.batch, stage.micro_batch()),
            };
            print_line(format!(
                "\nstage {}: trains {}; {samples} and {:.1} GFLOP a step",
                stage.name,
                stage.trains.join(" + "),
                whole_step_flops(&program, stage) / 1e9,
            ))?;
            print_line(report.to_string().trim_end())?;
            self.print_saving(stage, &layout, &report)?;
            self.print_largest(stage, &layout)?;
            if let Some(path) = svg {
                let name = format!("{}-{}.svg", path.display(), stage.name);
                let title = format!("{}, stage {}", self.recipe.name, stage.name);
                let drawing = draw_memory(&program, &title);
                write_durably(Path::new(&name), drawing.as_bytes())?;
                print_line(format!("  drawn in {name}"))?;
            }
        }
        Ok(())
    }

    fn compile(&self, stage: &Stage, layout: &Arc<ParameterLayout>) -> Result<Program> {
        let shape = step_shape(stage, None);
        compile_step(
            self.recipe,
            stage,
            layout,
            &shape,
            self.machine,
            self.memory_budget,
        )
    }

    /// The largest micro-batch within the limit, where one was given.
    fn print_largest(&self, stage: &Stage, layout: &Arc<ParameterLayout>) -> Result<()> {
        let Some(limit) = self.memory_limit else {
            return Ok(());
        };
        let (recipe, machine, budget) = (self.recipe, self.machine, self.memory_budget);
        let found = largest_micro_batch(recipe, stage, layout, machine, limit, budget);
        let within = format!("within {}", bytes(limit));
        print_line(match found {
            Some(size) => format!("  largest micro-batch {within}: {size} of {}", stage.batch),
            None => format!("  not one sample fits {within}"),
        })
    }

    /// What freezing the other modules saves against training every module the stage uses.
    fn print_saving(
        &self,
        stage: &Stage,
        layout: &Arc<ParameterLayout>,
        report: &MemoryReport,
    ) -> Result<()> {
        let mut unfrozen = stage.clone();
        unfrozen.trains = layout.modules().into_iter().map(str::to_owned).collect();
        let unfrozen = MemoryReport::new(&self.compile(&unfrozen, layout)?, layout);
        if unfrozen.total() > report.total() {
            print_line(format!(
                "  freezing saves {} of the {} that training every module would take",
                bytes(unfrozen.total() - report.total()),
                bytes(unfrozen.total()),
            ))?;
        }
        Ok(())
    }
}
