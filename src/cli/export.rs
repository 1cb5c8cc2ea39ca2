//! `keel export`.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
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
    #[arg(long, value_parser = PartParser, default_value = "vision")]
    part: PartArg,
    // Named by the families themselves.
    #[arg(long, value_name = "NAME", value_parser = parse_layout, help = layout_help())]
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
    Model,
}

/// Reads `--part`, and says what its old word is called now.
#[derive(Clone)]
struct PartParser;

impl TypedValueParser for PartParser {
    type Value = PartArg;

    fn parse_ref(
        &self,
        command: &clap::Command,
        option: Option<&clap::Arg>,
        value: &OsStr,
    ) -> std::result::Result<PartArg, clap::Error> {
        if value == "whole" {
            let answer = "--part whole is called --part model: it writes all parts of the model into one folder\n";
            return Err(command.clone().error(ErrorKind::InvalidValue, answer));
        }
        EnumValueParser::new().parse_ref(command, option, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = PartArg::value_variants().iter();
        Some(Box::new(values.filter_map(PartArg::to_possible_value)))
    }
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
    parse_named(&VisionLayout::all(), VisionLayout::name, text)
}

fn layout_help() -> String {
    let layouts = VisionLayout::all();
    let names: Vec<&str> = layouts.iter().map(|layout| layout.name()).collect();
    let (last, others) = names.split_last().expect("there are layouts");
    format!(
        "The layout of the tower: {} or {last}. By default the one that the run's weights came in, or the first that can say \
         the tower's settings",
        others.join(", "),
    )
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let options = ExportOptions {
        part: match args.part {
            PartArg::Vision => ExportPart::Vision,
            PartArg::Language => ExportPart::Language,
            PartArg::Connector => ExportPart::Connector,
            PartArg::Model => ExportPart::Whole,
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
