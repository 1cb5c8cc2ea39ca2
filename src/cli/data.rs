//! `keel data`: shows what a task looks like, checks the user's own data, and rebuilds the embedded tokeniser.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::options::pair_limits;
use super::values::{count, named, percent, seed, whole};
use super::{heading, print_line};
use keel_base::error::{Error, Result};
use keel_base::units::{bytes, counted, grouped};
use keel_data::augment::Augmentation;
use keel_data::batch::{BatchShape, TokenWeighting};
use keel_data::census::{TOKEN_BOUNDS, census};
use keel_data::chat::ChatTokenizer;
use keel_data::mixture::{Mixture, MixtureSettings};
use keel_data::pairs::{PairSource, Pairs};
use keel_data::pixels::Pixels;
use keel_data::source::SampleSettings;
use keel_data::sums::summed;
use keel_data::task::Task;
use keel_data::tiles::Tiling;
use keel_data::webdataset::expand_braces;
use keel_emoji::corpus::learn_tokenizer;
use keel_emoji::emoji_set::EmojiSet;
use keel_report::contact_sheet;
use keel_train::{TASKS, task_sources, write_durably};

/// Options of `keel data`.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Show samples of a task as training sees them, and draw their images as a PNG.
    Show(ShowArgs),
    /// Read your own data once and report samples, image sizes, tokens, unusable samples and duplicates.
    Check(CheckArgs),
    /// Write checksums beside the shards, as b3sum does; they are verified when the shards are opened.
    Sums(SumsArgs),
    /// Train the embedded tokenizer again on the texts of the embedded tasks, and write its merges.
    Tokenizer(TokenizerArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The task.
    #[arg(long, value_name = "TASK", default_value = "vqa", value_parser = named(&TASKS, |task| task.name),
        help_heading = heading::DATA)]
    task: Task,
    /// Samples to show: one batch.
    #[arg(long, default_value = "32", value_name = "N", value_parser = count, help_heading = heading::DATA)]
    count: usize,
    /// Which batch, counted from 0.
    #[arg(long, default_value = "0", value_name = "N", value_parser = whole, help_heading = heading::DATA)]
    step: u64,
    /// Random seed of the order and the augmentation.
    #[arg(long, default_value = "1", value_name = "N", value_parser = seed, help_heading = heading::DATA)]
    seed: u64,
    /// Questions per scene, at most.
    #[arg(long, default_value = "1", value_name = "N", value_parser = count, help_heading = heading::DATA)]
    turns: usize,
    /// Image resolution.
    #[arg(long, default_value = "64", value_name = "PIXELS", value_parser = count, help_heading = heading::DATA)]
    image_size: usize,
    /// Your own data, for the task samples; may be repeated.
    #[arg(long, value_name = "SPEC", help_heading = heading::DATA)]
    data: Vec<String>,
    /// Share of the samples of --data that may be unusable.
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = percent, help_heading = heading::DATA)]
    max_bad_samples: f64,
    /// Draw the images as one PNG file.
    #[arg(long, value_name = "FILE.png", help_heading = heading::DATA)]
    png: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The data, as in keel train --data.
    #[arg(value_name = "SPEC", required = true)]
    data: Vec<String>,
    /// Share of the samples that may be unusable before the command fails.
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = percent, help_heading = heading::DATA)]
    max_bad_samples: f64,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::DATA)]
    json: bool,
}

#[derive(Debug, Args)]
struct SumsArgs {
    /// The shards, for example shards-{000..009}.tar.
    #[arg(value_name = "SHARDS", required = true)]
    shards: Vec<String>,
}

#[derive(Debug, Args)]
struct TokenizerArgs {
    /// The file to write.
    #[arg(long, default_value = "assets/tokenizer.merges", value_name = "FILE", help_heading = heading::DATA)]
    out: PathBuf,
}

pub(super) fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Show(args) => show(args),
        DataCommand::Check(args) => check(args),
        DataCommand::Sums(args) => sums(args),
        DataCommand::Tokenizer(args) => {
            let tokenizer = learn_tokenizer(&EmojiSet::embedded())?;
            std::fs::write(&args.out, tokenizer.to_file())
                .map_err(|error| Error::io(&args.out, "write the merges", error))?;
            let ids = counted(tokenizer.len() as u64, "id");
            print_line(format!("{}: {ids}", args.out.display()))
        }
    }
}

fn sums(args: &SumsArgs) -> Result<()> {
    let mut shards = Vec::new();
    for spec in &args.shards {
        shards.extend(expand_braces(spec)?);
    }
    for (path, text) in summed(&shards)? {
        write_durably(&path, text.as_bytes())?;
        print_line(format!(
            "{}: {}",
            path.display(),
            counted(text.lines().count() as u64, "file")
        ))?;
    }
    Ok(())
}

fn check(args: &CheckArgs) -> Result<()> {
    let pairs = Pairs::open_all(&args.data, pair_limits(args.max_bad_samples))?;
    let census = census(&pairs)?;
    if args.json {
        print_line(serde_json::to_string_pretty(&census).expect("counts are plain data"))?;
        return pairs.drawing_skips().check();
    }
    let broken = census.samples - census.usable;
    print_line(format!(
        "{}: {} usable, {} not",
        counted(census.samples as u64, "sample"),
        grouped(census.usable as u64),
        grouped(broken as u64)
    ))?;
    if let Some(left_out) = &census.left_out_at_opening {
        print_line(format!("left out when opened: {left_out}"))?;
    }
    if broken > 0 {
        print_line(format!("not usable: {}", pairs.drawing_skips().summary()))?;
    }
    for note in &census.notes {
        print_line(format!("noted: {note}"))?;
    }
    let images = &census.images;
    if images.count == 0 {
        print_line("no images")?;
    } else {
        let [least, median, most] = images
            .sizes
            .map(|[width, height]| format!("{width} × {height}"));
        print_line(format!(
            "{} of {} in files: {least} to {most}, half of them at most {median}; {} duplicates",
            counted(images.count as u64, "image"),
            bytes(images.bytes),
            images.duplicates,
        ))?;
    }
    let [several, most] = images.several;
    if several > 0 {
        print_line(format!(
            "{several} samples show several, up to {most}: a stage takes them with --set stage.NAME.max_images={most}"
        ))?;
    }
    if images.animated > 0 {
        print_line(format!(
            "{} with the first frame of an animation",
            counted(images.animated as u64, "sample")
        ))?;
    }
    for (key, first) in &images.examples {
        print_line(format!("  {key}: the image of {first}"))?;
    }
    let words = &census.words;
    let not_learnt = match words.not_learnt {
        0 => String::new(),
        count => format!(", {count} of them not to be learnt"),
    };
    print_line(format!(
        "{}{not_learnt}; {} samples repeat the text of an earlier one",
        counted(words.answers as u64, "answer"),
        words.duplicates
    ))?;
    print_line("tokens of a conversation in the embedded tokenizer, image tokens not counted:")?;
    let bounds = TOKEN_BOUNDS.iter().map(|bound| format!("up to {bound}"));
    let bounds = bounds.chain([format!("more, up to {}", words.most_tokens)]);
    for (bound, count) in bounds.zip(words.tokens).filter(|(_, count)| *count > 0) {
        print_line(format!("  {bound:<18}{count:>12}"))?;
    }
    pairs.drawing_skips().check()
}

fn show(args: &ShowArgs) -> Result<()> {
    let pairs: Option<Arc<dyn PairSource>> = if args.data.is_empty() {
        None
    } else {
        Some(Arc::new(Pairs::open_all(
            &args.data,
            pair_limits(args.max_bad_samples),
        )?))
    };
    let samples = SampleSettings {
        augmentation: Augmentation::TRAINING,
        turns: args.turns,
        images: 1,
        share: 1.0,
    };
    let mixture = Mixture::new(
        task_sources(&EmojiSet::embedded(), pairs, args.seed, &samples),
        MixtureSettings {
            seed: args.seed,
            stage: 0,
            weights: vec![(args.task, 1.0)],
            shape: BatchShape {
                batch: args.count,
                image_size: args.image_size,
                image_tokens: 16,
                tokens: 512,
                pack: 1,
                tiling: Tiling::NONE,
                caption_tokens: 512,
                image_id: ChatTokenizer::embedded().image(),
                pixels: Pixels::default(),
            },
            weighting: TokenWeighting::default(),
            contrastive: false,
        },
    )?;
    let batch = mixture.batch(args.step)?;
    for (number, sample) in batch.samples.iter().enumerate() {
        let kind = sample.question_kind.as_deref().unwrap_or_default();
        print_line(format!(
            "{number:>4}  {kind:<10} {:<40} {}",
            sample.question, sample.answer
        ))?;
        for turn in &sample.further {
            print_line(format!("{:>17}{:<40} {}", "", turn.question, turn.answer))?;
        }
    }
    let items = counted(mixture.items(args.task) as u64, "item");
    print_line(format!("{items} an epoch"))?;
    if let Some(path) = &args.png {
        if !args.task.has_images {
            return Err(Error::setting("--png", "a task with images", args.task));
        }
        let sheet = contact_sheet(&batch.images, args.image_size, 8, 2)?;
        std::fs::write(path, sheet).map_err(|error| Error::io(path, "write the sheet", error))?;
        print_line(format!("images: {}", path.display()))?;
    }
    Ok(())
}
