//! `keel export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use safetensors::Dtype;

use super::{grouped, parse_bytes, parse_named, print_line};
use keel_base::error::Result;
use keel_train::{ExportOptions, ExportPart, export};
use keel_weights::VisionLayout;

/// Options of `keel export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A run's folder, for its newest checkpoint, or a checkpoint.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The folder to be made; it must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What of the model is written.
    #[arg(long, value_enum, default_value_t = PartArg::Vision)]
    part: PartArg,
    /// The layout of the tower: aimv2, sailvit, clip, siglip, dinov2 or internvit. By default the one that the run's weights
    /// came in, or the first that can say the tower's settings.
    #[arg(long, value_name = "NAME", value_parser = parse_layout)]
    layout: Option<VisionLayout>,
    /// The type of the numbers; by default that of the weights the run began from, or f32.
    #[arg(long, value_enum)]
    dtype: Option<TypeArg>,
    /// Tensors in one file, at most.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "5G")]
    shard_size: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartArg {
    /// The refined tower.
    Vision,
    /// The language model with its tokeniser.
    Language,
    /// What stands between them.
    Connector,
    /// All of it, in the form of InternVL and SAIL-VL.
    Whole,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    /// 32 bits.
    F32,
    /// 16 bits, the exponent of f32.
    Bf16,
    /// 16 bits, IEEE.
    F16,
}

fn parse_layout(text: &str) -> std::result::Result<VisionLayout, String> {
    parse_named(&VisionLayout::ALL, VisionLayout::name, text)
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let options = ExportOptions {
        part: match args.part {
            PartArg::Vision => ExportPart::Vision,
            PartArg::Language => ExportPart::Language,
            PartArg::Connector => ExportPart::Connector,
            PartArg::Whole => ExportPart::Whole,
        },
        layout: args.layout,
        dtype: args.dtype.map(|dtype| match dtype {
            TypeArg::F32 => Dtype::F32,
            TypeArg::Bf16 => Dtype::BF16,
            TypeArg::F16 => Dtype::F16,
        }),
        shard_bytes: args.shard_size,
    };
    let exported = export(&args.run, &args.out, &options)?;
    let kind = match exported.model_type.as_str() {
        "" => "connector".to_owned(),
        kind => kind.to_owned(),
    };
    print_line(format!(
        "{}: {kind}, {} numbers in {} tensors and {} file{}, from {}",
        args.out.display(),
        grouped(exported.elements),
        exported.tensors,
        exported.files,
        if exported.files == 1 { "" } else { "s" },
        exported.checkpoint.display(),
    ))?;
    if exported.lacks_tokenizer {
        print_line(
            "it speaks Keel's embedded tokeniser, for which other tools have no tokenizer.json",
        )?;
    }
    Ok(())
}
