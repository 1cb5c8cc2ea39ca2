//! Options that several commands share, and the headings under which help lists them.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::print_line;
use super::values::{count, described, device, named, percent, threads};
use keel_base::error::Result;
use keel_data::chat::ChatTemplate;
use keel_data::pairs::{PairLimits, PairSource, Pairs};
use keel_engine::executor::{Device, Precision, SelectedDevice, check_products, usable_cores};
use keel_engine::tape::CompileTarget;
use keel_train::PublishedWeights;

/// The headings of help, in the order in which `keel train --help` has them.
pub(super) mod heading {
    /// What is run, and where.
    pub const RUN: &str = "Run";
    /// The user's own data.
    pub const DATA: &str = "Data";
    /// Published weights.
    pub const WEIGHTS: &str = "Weights";
    /// What a step may take.
    pub const MEMORY: &str = "Memory";
    /// Several ranks.
    pub const RANKS: &str = "Ranks";
    /// Checkpoints and checks.
    pub const SAFETY: &str = "Safety";
    /// What is measured.
    pub const EVALUATION: &str = "Evaluation";
    /// What few need.
    pub const EXPERT: &str = "Expert";
}

/// Options of every command that computes or plans.
#[derive(Clone, Debug, Args)]
pub(super) struct ComputeArgs {
    /// The device to compute on.
    #[arg(long, value_name = "DEVICE", value_parser = device(), default_value = "auto", help_heading = heading::RUN)]
    device: Device,
    /// CPU threads; what computes takes one a core at most [default: all cores].
    #[arg(long, value_name = "N", value_parser = threads, help_heading = heading::RUN)]
    threads: Option<usize>,
    /// Storage precision of weights and activations [default: bf16 on a GPU and in the emulator, f32 on the CPU].
    #[arg(long, value_name = "TYPE", value_parser = described(&Precision::ALL, Precision::name, Precision::about),
        help_heading = heading::RUN)]
    precision: Option<Precision>,
}

impl ComputeArgs {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(usable_cores)
    }

    /// What computes.
    ///
    /// # Errors
    /// As [`SelectedDevice::new`].
    pub fn choose(&self) -> Result<SelectedDevice> {
        self.choose_for(1)
    }

    /// What each of `ranks` ranks of this process computes with: the threads are divided among them.
    ///
    /// # Errors
    /// As [`SelectedDevice::new`].
    pub fn choose_for(&self, ranks: usize) -> Result<SelectedDevice> {
        let threads = (self.threads() / ranks).max(1);
        SelectedDevice::new(self.device, threads, self.precision)
    }

    /// What computes, with so many threads where the user does not say.
    ///
    /// # Errors
    /// As [`SelectedDevice::new`].
    pub fn choose_with(&self, threads: usize) -> Result<SelectedDevice> {
        let threads = self.threads.unwrap_or(threads);
        SelectedDevice::new(self.device, threads, self.precision)
    }

    /// What programs are made for, whether the device is there or not.
    ///
    /// # Errors
    /// As [`check_products`] and [`Device::compile_target_here`].
    pub fn compile_target(&self) -> Result<CompileTarget> {
        check_products()?;
        self.device
            .compile_target_here(self.threads(), self.precision)
    }
}

/// Says in one line what will compute, and why.
///
/// # Errors
/// As [`print_line`].
pub(super) fn announce(selected: &SelectedDevice) -> Result<()> {
    print_line(format!("device: {}", selected.describe()))
}

/// The recipe that is taken where none is named.
pub(super) const DEFAULT_RECIPE: &str = "emoji";

/// Which recipe, with which changes.
#[derive(Clone, Debug, Args)]
pub(super) struct RecipeArgs {
    /// A built-in recipe (emoji, tiny, panels, sailvit-large, sailvit-huge) or the path of a TOML file.
    #[arg(long, default_value = DEFAULT_RECIPE, value_name = "NAME|FILE", help_heading = heading::RUN)]
    pub recipe: String,
    /// Override one setting of the recipe, for example stage.fine-grained.learning_rate=1e-4 or model.vision.depth=4; may be
    /// repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = heading::RUN)]
    pub sets: Vec<String>,
}

/// Which published weights a model begins from.
#[derive(Clone, Debug, Args)]
pub(super) struct WeightsArgs {
    /// Hugging Face folder with the vision tower to start from (settings and weights); keel inspect says what it holds.
    #[arg(long, value_name = "DIR", help_heading = heading::WEIGHTS)]
    pub vision: Option<PathBuf>,
    /// Image resolution, if it differs from the tower's own; learned position embeddings are interpolated.
    #[arg(long, value_name = "PIXELS", value_parser = count, requires = "vision", help_heading = heading::WEIGHTS)]
    image_size: Option<usize>,
    /// Hugging Face folder with the language model to start from, including its tokenizer.json.
    #[arg(long, value_name = "DIR", help_heading = heading::WEIGHTS)]
    pub language: Option<PathBuf>,
    /// Chat template of the language model, if its folder does not say.
    #[arg(long, value_name = "TEMPLATE", value_parser = named(&ChatTemplate::ALL, ChatTemplate::name), requires = "language",
        help_heading = heading::WEIGHTS)]
    chat: Option<ChatTemplate>,
    /// Hugging Face folder whose vision tower is the teacher of stages with distillation_weight (settings and weights).
    #[arg(long, value_name = "DIR", help_heading = heading::WEIGHTS)]
    pub teacher: Option<PathBuf>,
    /// Folder of PEFT whose low-rank adapters (LoRA) the vision tower starts with.
    #[arg(long, value_name = "DIR", help_heading = heading::WEIGHTS)]
    pub vision_adapter: Option<PathBuf>,
    /// Folder of PEFT whose low-rank adapters (LoRA) the language model starts with.
    #[arg(long, value_name = "DIR", help_heading = heading::WEIGHTS)]
    pub language_adapter: Option<PathBuf>,
}

impl WeightsArgs {
    /// The weights, those of `plan` where the command line does not say.
    pub fn over(&self, plan: PublishedWeights) -> PublishedWeights {
        // A size belongs to its tower, a layout to its language model.
        let (vision, image_size) = match &self.vision {
            Some(vision) => (Some(vision.clone()), self.image_size),
            None => (plan.vision, plan.image_size),
        };
        let (language, chat) = match &self.language {
            Some(language) => (Some(language.clone()), self.chat),
            None => (plan.language, plan.chat),
        };
        PublishedWeights {
            vision,
            image_size,
            language,
            chat,
            teacher: self.teacher.clone().or(plan.teacher),
            vision_adapter: self.vision_adapter.clone().or(plan.vision_adapter),
            language_adapter: self.language_adapter.clone().or(plan.language_adapter),
        }
    }
}

/// Which of the user's own pairs are trained on.
#[derive(Clone, Debug, Args)]
pub(super) struct DataArgs {
    /// Your own data: an image folder with captions, WebDataset shards such as pairs-{000..009}.tar, a .json or .jsonl list of
    /// captions or conversations, an InternVL data mixture, or a .tsv, .csv or .parquet table; all but folders may be addresses
    /// (s3://, gs://, az://, https://). SPEC=2 repeats its samples twice an epoch; may be repeated. Stages draw from them as the task `samples`.
    #[arg(long = "data", value_name = "SPEC", help_heading = heading::DATA)]
    pub specs: Vec<String>,
    /// Share of the samples of --data that may be unusable before the run ends. Each is counted and named either way.
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = percent, help_heading = heading::DATA)]
    pub max_bad_samples: f64,
}

/// The usual limits on data, with this share of samples that may be bad.
pub(super) fn pair_limits(max_bad_samples: f64) -> PairLimits {
    let mut limits = PairLimits {
        keeps_indexes: true,
        ..PairLimits::default()
    };
    limits.skips.max_bad_fraction = max_bad_samples;
    limits
}

/// Opens pairs and says how many there are; none where nothing is named.
///
/// # Errors
/// As [`Pairs::open_all`].
pub(super) fn open_pairs(
    specs: &[String],
    max_bad_samples: f64,
) -> Result<Option<Arc<dyn PairSource>>> {
    if specs.is_empty() {
        return Ok(None);
    }
    open_named("data", specs, max_bad_samples).map(Some)
}

/// Opens held-out pairs and says how many there are.
///
/// # Errors
/// As [`Pairs::open`].
pub(super) fn open_held_out(spec: &str, max_bad_samples: f64) -> Result<Arc<dyn PairSource>> {
    open_named("held-out data", &[spec.to_owned()], max_bad_samples)
}

fn open_named(what: &str, specs: &[String], max_bad_samples: f64) -> Result<Arc<dyn PairSource>> {
    let pairs = Pairs::open_all(specs, pair_limits(max_bad_samples))?;
    let left_out = match pairs.left_out() {
        Some(left_out) => format!("; left out {left_out}"),
        None => String::new(),
    };
    let named = specs.join(", ");
    print_line(format!(
        "{what}: {} samples of {named}{left_out}",
        pairs.len()
    ))?;
    for note in pairs.notes() {
        print_line(format!("{what}: {note}"))?;
    }
    Ok(Arc::new(pairs))
}
