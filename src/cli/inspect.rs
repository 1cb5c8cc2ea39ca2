//! `keel inspect`.

use std::path::PathBuf;

use clap::Args;

use super::print_line;
use keel_base::error::Result;
use keel_base::units::{counted, grouped};
use keel_model::{LanguageConfig, VisionConfig, VisionHead};
use keel_train::FolderChat;
use keel_weights::{Folder, FolderConnector, Resized, SubModel, SubModelConfig};

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
        hold_values(part, &folder)?;
        match part.config() {
            SubModelConfig::Vision(config) => print_images(part, &folder, config)?,
            SubModelConfig::Language(config) => print_chat(part, &folder, config)?,
            SubModelConfig::Connector(_) | SubModelConfig::Head(..) => {}
        }
        print_line("  Keel can train it: every setting has its code and every tensor its place")?;
        print_head(part, &folder)?;
    }
    for unread in SubModel::unread_parts(&folder) {
        print_line(format!("\nleft aside: {unread}, which Keel does not read"))?;
    }
    match SubModel::connector_or_why(&folder)? {
        FolderConnector::Taken(taken) => {
            let (part, _) = *taken;
            print_part(&part)?;
            hold_values(&part, &folder)?;
            print_line(
                "  Keel can train it: it comes along where --vision and --language both name this folder",
            )
        }
        FolderConnector::Left(why) => print_line(format!(
            "\nConnector: left aside, and training begins with a new one: {why}"
        )),
        FolderConnector::Absent => Ok(()),
    }
}

/// Reads every value, so that what cannot be trained from is refused here and not when a run begins.
fn hold_values(part: &SubModel, folder: &Folder) -> Result<()> {
    part.read(folder, &mut |_, _, _| {})
}

/// How the tower's images are prepared, and what other sizes and connectors go with it.
fn print_images(part: &SubModel, folder: &Folder, config: &VisionConfig) -> Result<()> {
    let processor = part.processor(folder)?;
    let side = processor.map_or(config.image_size, |processor| processor.side);
    print_line(match processor {
        None => "  images: scaled as the recipe says, there being no preprocessor_config.json"
            .to_owned(),
        Some(processor) => format!(
            "  images: {}, {}; mean {:?}, deviation {:?}",
            match processor.resized {
                Resized::ShorterTo(edge) =>
                    format!("shorter edge to {edge} pixels, the middle {side} cut out"),
                Resized::BothTo(edge) =>
                    format!("both edges to {edge} pixels, the middle {side} cut out"),
                Resized::Both => format!("both edges to {side} pixels"),
            },
            if processor.is_bicubic {
                "bicubic"
            } else {
                "bilinear"
            },
            processor.mean,
            processor.deviation,
        ),
    })?;
    if side != config.image_size {
        print_line(format!(
            "  trained at those {side} pixels, its positions interpolated; --image-size {} trains at their own",
            config.image_size
        ))?;
    }
    let seen = VisionConfig {
        image_size: side,
        ..config.clone()
    };
    let (grid, patch) = (seen.grid(), seen.patch_size);
    let list = |numbers: &[usize], between: &str| {
        let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
        words.join(between)
    };
    let factors = seen.unshuffle_factors();
    print_line(format!(
        "  grid of {grid} × {grid} patches: goes with model.connector.unshuffle_factor {}, and --image-size with a multiple of \
         {patch} times the factor",
        list(&factors[..factors.len().min(FACTORS)], ", "),
    ))?;
    if grid.is_multiple_of(USUAL_FACTOR) {
        return Ok(());
    }
    print_line(format!(
        "  the recipes' factor of {USUAL_FACTOR} needs --image-size {}",
        list(&seen.sizes_for(USUAL_FACTOR), " or ")
    ))
}

/// Factors of a connector that are listed; larger ones leave no image to speak of.
const FACTORS: usize = 6;
/// The factor of the built-in recipes.
const USUAL_FACTOR: usize = 2;

/// The tokenizer and the chat template that a run would begin with, or what it would say of them.
fn print_chat(part: &SubModel, folder: &Folder, config: &LanguageConfig) -> Result<()> {
    if let Some(limit) = part.length_limit() {
        print_line(format!(
            "  {}: taken for sequences of up to {} tokens, which it leaves alone",
            limit.key, limit.tokens
        ))?;
    }
    match FolderChat::open(folder, config.vocabulary, None) {
        Ok(None) => print_line("  chats: in Keel's embedded tokenizer"),
        Ok(Some(chat)) => print_line(format!(
            "  chats: {} ids, and the template {}, as {} says",
            grouped(chat.tokenizer.vocabulary() as u64),
            chat.template.name(),
            chat.said_by.unwrap_or("--chat"),
        )),
        // Training refuses it with the same words; evaluating the tower beside it does not.
        Err(problem) => print_line(format!("  chats: {problem}")),
    }
}

/// What pools the tower's tokens. Training leaves it out, so what is in its way is said and no more.
fn print_head(part: &SubModel, folder: &Folder) -> Result<()> {
    let head = part.head(folder).and_then(|head| {
        if let Some((head, _)) = &head {
            hold_values(head, folder)?;
        }
        Ok(head)
    });
    match head {
        // A class token is a row of the tower's own.
        Ok(None | Some((_, VisionHead::ClassToken))) => Ok(()),
        Ok(Some((head, _))) => {
            print_part(&head)?;
            print_line("  refinement leaves it out, as SAILViT does")
        }
        Err(problem) => print_line(format!(
            "\nPooled output: training does without it, and keel eval refuses it: {problem}"
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
            config.tokens(),
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
            config.tokens(),
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
    Ok(())
}
