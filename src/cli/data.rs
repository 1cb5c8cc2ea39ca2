//! `keel data`: shows what a task looks like, checks the user's own data, and rebuilds the embedded tokeniser.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{parse_named, print_line};
use keel_base::error::{Error, Result};
use keel_data::augment::Augmentation;
use keel_data::batch::{BatchShape, Pixels, Weighting};
use keel_data::census::{TOKEN_BOUNDS, census};
use keel_data::corpus::learn_tokenizer;
use keel_data::library::Library;
use keel_data::mixture::{Mixture, MixtureSettings};
use keel_data::pairs::{PairLimits, PairSource, Pairs};
use keel_data::sums::summed;
use keel_data::task::TaskKind;
use keel_data::tiles::Tiling;
use keel_data::webdataset::expand_braces;
use keel_engine::program::bytes;
use keel_report::contact_sheet;
use keel_train::write_durably;

/// Options of `keel data`.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Prints samples of a task as training sees them, and draws their pictures as a PNG.
    Show(ShowArgs),
    /// Reads your own data once and counts: samples, sizes, tokens, broken ones, duplicates.
    Check(CheckArgs),
    /// Writes the checksums of shards beside them, as b3sum does: whoever opens the shards then holds them to it.
    Sums(SumsArgs),
    /// Learns the embedded tokeniser anew from the tasks' texts and writes its merges.
    Tokenizer(TokenizerArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The task: short_captions, dense_captions, reading, scenes, facts or pairs.
    #[arg(long, default_value = "scenes", value_parser = parse_task)]
    task: TaskKind,
    /// How many samples.
    #[arg(long, default_value_t = 32, value_name = "N")]
    count: usize,
    /// Which batch of that many.
    #[arg(long, default_value_t = 0)]
    step: u64,
    /// The seed of order and looks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Questions about one scene, at most.
    #[arg(long, default_value_t = 1, value_name = "N")]
    turns: usize,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 64, value_name = "PIXELS")]
    image_size: usize,
    /// Your own pairs, for the task pairs; may be given several times.
    #[arg(long, value_name = "SPEC")]
    data: Vec<String>,
    /// Where to draw the pictures.
    #[arg(long, value_name = "FILE.png")]
    png: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The data, as `keel train --data` takes them.
    #[arg(value_name = "SPEC", required = true)]
    data: Vec<String>,
    /// Prints one JSON object in place of sentences.
    #[arg(long)]
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
    /// Where to write the merges.
    #[arg(long, default_value = "assets/tokenizer.merges", value_name = "FILE")]
    out: PathBuf,
}

fn parse_task(name: &str) -> Result<TaskKind, String> {
    parse_named(&TaskKind::ALL, TaskKind::name, name)
}

pub(super) fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Show(args) => show(args),
        DataCommand::Check(args) => check(args),
        DataCommand::Sums(args) => sums(args),
        DataCommand::Tokenizer(args) => {
            let tokenizer = learn_tokenizer(&Library::embedded())?;
            std::fs::write(&args.out, tokenizer.to_file())
                .map_err(|error| Error::io(&args.out, "write the merges", error))?;
            println!("{}: {} ids", args.out.display(), tokenizer.len());
            Ok(())
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
            "{}: {} files",
            path.display(),
            text.lines().count()
        ))?;
    }
    Ok(())
}

fn check(args: &CheckArgs) -> Result<()> {
    let pairs = Pairs::open_all(&args.data, PairLimits::default())?;
    let census = census(&pairs);
    if args.json {
        print_line(serde_json::to_string_pretty(&census).expect("counts are plain data"))?;
        return pairs.drawing_skips().check();
    }
    let broken = census.samples - census.usable;
    print_line(format!(
        "{} samples: {} usable, {broken} not",
        census.samples, census.usable
    ))?;
    if let Some(left_out) = &census.left_out_at_opening {
        print_line(format!("left out when opened: {left_out}"))?;
    }
    if broken > 0 {
        print_line(format!("not usable: {}", pairs.drawing_skips().summary()))?;
    }
    let pictures = &census.pictures;
    let [least, median, most] = pictures
        .sizes
        .map(|[width, height]| format!("{width} × {height}"));
    print_line(format!(
        "{} pictures of {} in files: {least} to {most}, half of them at most {median}; {} came before",
        pictures.count,
        bytes(pictures.bytes),
        pictures.duplicates,
    ))?;
    let [several, most] = pictures.several;
    if several > 0 {
        print_line(format!(
            "{several} samples show several, up to {most}: a stage takes them with --set stage.NAME.pictures={most}"
        ))?;
    }
    for (key, first) in &pictures.examples {
        print_line(format!("  {key}: the picture of {first}"))?;
    }
    let words = &census.words;
    print_line(format!(
        "{} answers; {} samples say what came before",
        words.answers, words.duplicates
    ))?;
    print_line("tokens of the embedded tokeniser in a conversation, the picture's left out:")?;
    let bounds = TOKEN_BOUNDS.iter().map(|bound| format!("up to {bound}"));
    let bounds = bounds.chain([format!("more, up to {}", words.most_tokens)]);
    for (bound, count) in bounds.zip(words.tokens).filter(|(_, count)| *count > 0) {
        print_line(format!("  {bound:<18}{count:>12}"))?;
    }
    pairs.drawing_skips().check()
}

fn show(args: &ShowArgs) -> Result<()> {
    if args.count == 0 || args.image_size == 0 {
        return Err(Error::setting("--count and --image-size", "at least 1", 0));
    }
    let pairs: Option<Arc<dyn PairSource>> = match args.data.is_empty() {
        false => Some(Arc::new(Pairs::open_all(
            &args.data,
            PairLimits::default(),
        )?)),
        true => None,
    };
    let mixture = Mixture::new(
        Library::embedded(),
        pairs,
        MixtureSettings {
            seed: args.seed,
            stage: 0,
            weights: vec![(args.task, 1.0)],
            shape: BatchShape {
                tiling: Tiling::NONE,
                pack: 1,
                batch: args.count,
                image_size: args.image_size,
                image_tokens: 16,
                tokens: 512,
                caption_tokens: 512,
                pixels: Pixels::default(),
            },
            turns: args.turns,
            pictures: 1,
            weighting: Weighting::default(),
            augmentation: Augmentation::TRAINING,
            contrastive: false,
        },
    )?;
    let batch = mixture.batch(args.step)?;
    for (number, sample) in batch.samples.iter().enumerate() {
        let kind = sample.question_kind.map_or("", |kind| kind.name());
        println!(
            "{number:>4}  {kind:<10} {:<40} {}",
            sample.question, sample.answer
        );
        for turn in &sample.further {
            println!("{:>17}{:<40} {}", "", turn.question, turn.answer);
        }
    }
    println!("{} items an epoch", mixture.items(args.task));
    if let Some(path) = &args.png {
        if !args.task.has_image() {
            return Err(Error::setting("--png", "a task with pictures", args.task));
        }
        let sheet = contact_sheet(&batch.images, args.image_size, 8, 2)?;
        std::fs::write(path, sheet).map_err(|error| Error::io(path, "write the sheet", error))?;
        println!("pictures: {}", path.display());
    }
    Ok(())
}
