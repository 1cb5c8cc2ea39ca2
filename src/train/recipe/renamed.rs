//! Keys that once had another name. The old name is refused, with the new one in the sentence: read as an alias it would let
//! two spellings live on in recipes, tables and messages.

use toml::{Table, Value};

use super::locate::{KeyFinder, Path};
use keel_base::error::{Error, Result};

/// A key, or a value of a key, that has another name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The old path from the top of the file, `*` for any entry of a list; `path=value` where the name is a value's.
    pub old: &'static str,
    /// What takes the place of the path's last part.
    pub new: &'static str,
    /// The first version that refuses the old name.
    pub since: &'static str,
}

const fn renamed(old: &'static str, new: &'static str, since: &'static str) -> Renamed {
    Renamed { old, new, since }
}

/// The renamed keys of recipes.
pub const RENAMED_RECIPE_KEYS: &[Renamed] = &[
    renamed("contrastive_form", "contrastive_loss", "0.2.0"),
    renamed("random_rounding", "stochastic_rounding", "0.2.0"),
    renamed("pixels.deviation", "std", "0.2.0"),
    renamed("chat.layout", "template", "0.2.0"),
    renamed("model.embedding", "embed_dim", "0.2.0"),
    renamed("model.connector.factor", "unshuffle_factor", "0.2.0"),
    renamed("model.text.context", "context_length", "0.2.0"),
    renamed("model.language.tied", "tied_embeddings", "0.2.0"),
    renamed("model.vision.mlp=swi_glu", "swiglu", "0.2.0"),
    renamed("model.vision.mlp=gelu_quick", "quick_gelu", "0.2.0"),
    renamed("model.text.mlp=swi_glu", "swiglu", "0.2.0"),
    renamed("model.text.mlp=gelu_quick", "quick_gelu", "0.2.0"),
    renamed("stage.*.data.reading", "ocr", "0.2.0"),
    renamed("stage.*.data.scenes", "vqa", "0.2.0"),
    renamed("stage.*.data.pairs", "samples", "0.2.0"),
    renamed("stage.*.next_token", "next_token_weight", "0.2.0"),
    renamed("stage.*.contrastive", "contrastive_weight", "0.2.0"),
    renamed("stage.*.batch", "batch_size", "0.2.0"),
    renamed("stage.*.micro_batch", "micro_batch_size", "0.2.0"),
    renamed("stage.*.tokens", "max_tokens", "0.2.0"),
    renamed("stage.*.pack", "samples_per_sequence", "0.2.0"),
    renamed("stage.*.tiles", "max_tiles", "0.2.0"),
    renamed("stage.*.tile_room", "tile_budget", "0.2.0"),
    renamed("stage.*.pictures", "max_images", "0.2.0"),
    renamed("stage.*.caption_tokens", "max_caption_tokens", "0.2.0"),
    renamed("stage.*.warm_up", "warmup_ratio", "0.2.0"),
    renamed("stage.*.clip", "max_grad_norm", "0.2.0"),
    renamed("stage.*.turns", "max_turns", "0.2.0"),
    renamed("stage.*.fresh", "reinitialize", "0.2.0"),
];

/// The renamed keys of ablation plans.
pub const RENAMED_PLAN_KEYS: &[Renamed] = &[
    renamed("pictures", "max_images", "0.2.0"),
    renamed("quick.pictures", "max_images", "0.2.0"),
    renamed("quick.warm_steps", "warm_start_ratio", "0.2.0"),
    renamed("quick.steps", "refinement_ratio", "0.2.0"),
    renamed("quick.target_steps", "target_ratio", "0.2.0"),
];

/// Refuses the old names in a file's table, with the command line's settings in it.
///
/// # Errors
/// [`Error::Setting`] with file, line, the old name and the new one.
pub fn refuse_old_names(names: &[Renamed], table: &Table, finder: &KeyFinder<'_>) -> Result<()> {
    let root = Value::Table(table.clone());
    for name in names {
        let (path, value) = match name.old.split_once('=') {
            Some((path, value)) => (path, Some(value)),
            None => (name.old, None),
        };
        let parts: Vec<&str> = path.split('.').collect();
        let Some(at) = find(&root, &parts, value, Path::new()) else {
            continue;
        };
        let old = value.or(parts.last().copied()).unwrap_or(path);
        let want = format!("{}, its name since version {}", name.new, name.since);
        let found = format!("{old}, its old name");
        return Err(finder.place(Error::setting(at.join("."), want, found)));
    }
    Ok(())
}

/// The path below `at` of the first setting that `parts` lead to, with that value where one is asked for.
fn find(here: &Value, parts: &[&str], value: Option<&str>, at: Path) -> Option<Path> {
    let Some((part, parts)) = parts.split_first() else {
        let is_it = value.is_none_or(|value| here.as_str() == Some(value));
        return is_it.then_some(at);
    };
    let below = |key: &str, next: &Value| {
        let mut at = at.clone();
        at.push(key.to_owned());
        find(next, parts, value, at)
    };
    match here {
        Value::Table(table) => below(part, table.get(*part)?),
        Value::Array(list) if *part == "*" => {
            let mut list = list.iter().enumerate();
            list.find_map(|(index, next)| below(&index.to_string(), next))
        }
        _ => None,
    }
}
