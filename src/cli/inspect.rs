//! `keel inspect`.

use std::path::PathBuf;

use clap::Args;

use super::print_line;
use keel_base::error::Result;
use keel_base::units::{counted, grouped};
use keel_model::VisionHead;
use keel_weights::{Folder, SubModel, SubModelConfig};

/// Options of `keel inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A Hugging Face folder: config.json and model.safetensors, or shards with their index.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let folder = Folder::open(&args.folder)?;
    let parts = SubModel::all(&folder)?;
    let mut types: Vec<String> = folder
        .tensors()
        .values()
        .map(|place| format!("{:?}", place.dtype))
        .collect();
    types.sort();
    types.dedup();
    print_line(format!(
        "{}: {} of {} in {}",
        folder.path().display(),
        counted(folder.tensors().len() as u64, "tensor"),
        types.join(", "),
        counted(folder.files() as u64, "file"),
    ))?;
    for part in &parts {
        print_part(part)?;
        // A class token is a row of the tower's own.
        match part.head(&folder)? {
            None | Some((_, VisionHead::ClassToken)) => {}
            Some((head, _)) => print_part(&head)?,
        }
    }
    // What is in the way of a connector is in the way of nothing else.
    match SubModel::connector(&folder) {
        Ok(Some((part, _))) => print_part(&part),
        Ok(None) => Ok(()),
        Err(problem) => print_line(format!(
            "\nConnector: Keel begins with one of its own ({problem})"
        )),
    }
}

fn print_part(part: &SubModel) -> Result<()> {
    print_line(format!("\n{}", part.title()))?;
    match part.config() {
        SubModelConfig::Vision(config) => print_line(format!(
            "  {} × {} pixels in patches of {}: {} tokens; width {}, {} blocks, {} heads, feed-forward {}",
            config.image_size,
            config.image_size,
            config.patch_size,
            config.patches() + usize::from(config.class_token),
            config.width,
            config.depth,
            config.heads,
            config.mlp_width,
        ))?,
        SubModelConfig::Language(config) => print_line(format!(
            "  vocabulary {}{}; width {}, {} blocks, {} heads of {} on {} keys and values, feed-forward {}",
            config.vocabulary,
            if config.tied_embeddings { ", tied" } else { "" },
            config.width,
            config.depth,
            config.heads,
            config.head_dim,
            config.key_value_heads,
            config.mlp_width,
        ))?,
        SubModelConfig::Connector(config) => print_line(format!(
            "  {} × {} patches become one of {} image tokens; width {} to {}",
            config.connector.unshuffle_factor,
            config.connector.unshuffle_factor,
            config.image_tokens(),
            config.vision.width,
            config.language.width,
        ))?,
        SubModelConfig::Head(config, _) => print_line(format!(
            "  {} tokens become one row of {}, which keel eval measures",
            config.patches() + usize::from(config.class_token),
            config.width,
        ))?,
    }
    // The blocks of a tower are one line.
    let mut modules: Vec<(String, usize)> = Vec::new();
    for entry in part.layout().entries() {
        let name: Vec<&str> = entry.spec.name.splitn(3, '.').take(2).collect();
        let (name, count) = (name.join("."), entry.spec.shape.numel());
        match modules.iter_mut().find(|(module, _)| *module == name) {
            Some((_, total)) => *total += count,
            None => modules.push((name, count)),
        }
    }
    modules.push(("parameters".into(), part.layout().count(|_| true)));
    for (module, count) in modules {
        print_line(format!("  {module:<24}{:>16}", grouped(count as u64)))?;
    }
    for ignored in part.ignored() {
        print_line(format!(
            "  left aside: {}, {}",
            ignored.what,
            grouped(ignored.elements as u64)
        ))?;
    }
    for regulariser in part.regularisers() {
        print_line(format!("  trains here without {regulariser}"))?;
    }
    if let SubModelConfig::Head(..) = part.config() {
        return print_line("  refinement leaves it out, as SAILViT does");
    }
    print_line("  Keel can train it: every setting has its code and every tensor its place")
}
