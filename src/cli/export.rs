//! `keel export`.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Args;
use safetensors::Dtype;

use super::values::{described, named, size};
use super::{heading, print_line};
use keel_base::error::Result;
use keel_base::units::{counted, grouped};
use keel_train::{ExportOptions, ExportPart, LoraExport, export};
use keel_weights::VisionLayout;

/// Types that can be asked for.
const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

fn name_of_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bf16",
        Dtype::F16 => "f16",
        _ => "f32",
    }
}

fn about_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "IEEE half precision",
        _ => "single precision",
    }
}

/// The layouts that the families of towers state.
fn layouts() -> &'static [VisionLayout] {
    static LAYOUTS: LazyLock<Vec<VisionLayout>> = LazyLock::new(VisionLayout::all);
    &LAYOUTS
}

/// Options of `keel export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A run's folder (its newest checkpoint is exported) or one checkpoint.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The folder to write, new or empty.
    #[arg(long, value_name = "DIR", help_heading = heading::RUN)]
    out: PathBuf,
    /// The part of the model to export.
    #[arg(long, value_name = "PART", default_value = ExportPart::Vision.name(),
        value_parser = described(&ExportPart::ALL, ExportPart::name, ExportPart::about), help_heading = heading::WEIGHTS)]
    part: ExportPart,
    /// Layout of the vision tower [default: the one that the run's weights came in, or the first that can express the tower's
    /// settings].
    #[arg(long, value_name = "NAME", value_parser = named(layouts(), VisionLayout::name),
        help_heading = heading::WEIGHTS)]
    layout: Option<VisionLayout>,
    /// Data type of the tensors [default: that of the weights the run started from, or f32]. Weights that were not trained are
    /// exported bit-identical by default.
    #[arg(long, value_name = "TYPE", value_parser = described(&TYPES, name_of_type, about_type),
        help_heading = heading::WEIGHTS)]
    dtype: Option<Dtype>,
    /// Export the exponential moving average of the weights that the checkpoint's stage trained, which a stage with ema_decay
    /// keeps.
    #[arg(long, help_heading = heading::WEIGHTS)]
    ema: bool,
    /// What becomes of the low-rank adapters of the part: to be said where it has any.
    #[arg(long, value_name = "WHAT", value_parser = described(&LoraExport::ALL, LoraExport::name, LoraExport::about),
        help_heading = heading::WEIGHTS)]
    lora: Option<LoraExport>,
    /// Upper limit on the size of one weights file.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "5G", help_heading = heading::EXPERT)]
    shard_size: u64,
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let options = ExportOptions {
        part: args.part,
        layout: args.layout,
        dtype: args.dtype,
        shard_bytes: args.shard_size,
        averages: args.ema,
        lora: args.lora,
    };
    let exported = export(&args.run, &args.out, &options)?;
    let kind = match exported.model_type.as_str() {
        "" => "connector".to_owned(),
        kind => kind.to_owned(),
    };
    print_line(format!(
        "{}: {kind}, {} numbers in {} and {}, from {}",
        args.out.display(),
        grouped(exported.elements as u64),
        counted(exported.tensors as u64, "tensor"),
        counted(exported.files as u64, "file"),
        exported.checkpoint.display(),
    ))?;
    for note in &exported.notes {
        print_line(note)?;
    }
    if exported.lacks_tokenizer {
        print_line(
            "it uses Keel's embedded tokenizer, for which other tools have no tokenizer.json",
        )?;
    }
    Ok(())
}
