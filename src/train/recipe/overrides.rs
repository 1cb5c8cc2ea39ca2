//! What changes a recipe's text before it is read: presets of published models, and settings from the command line.

use serde::Serialize;
use toml::{Table, Value};

use super::locate::KeyFinder;
use keel_base::error::{Error, Found, Result, with_near_miss};
use keel_model::{LANGUAGE_PRESETS, VISION_PRESETS, language_preset, vision_preset};

/// Replaces `preset = "…"` in [model.vision] and [model.language] by the preset's fields; keys beside it win.
pub(super) fn expand_presets(table: &mut Table, finder: &KeyFinder<'_>) -> Result<()> {
    let Some(Value::Table(model)) = table.get_mut("model") else {
        return Ok(());
    };
    type Preset = fn(&str) -> Result<Value>;
    let towers: [(&str, &[&str], Preset); 2] = [
        ("vision", VISION_PRESETS, |name| {
            Ok(as_value(vision_preset(name)?))
        }),
        ("language", LANGUAGE_PRESETS, |name| {
            Ok(as_value(language_preset(name)?))
        }),
    ];
    for (tower, known, preset) in towers {
        let Some(Value::Table(settings)) = model.get_mut(tower) else {
            continue;
        };
        let Some(name) = settings.remove("preset") else {
            continue;
        };
        let refuse = |found: Found| {
            let want = format!("one of {}", known.join(", "));
            finder.place(Error::setting(format!("model.{tower}.preset"), want, found))
        };
        let Value::String(name) = name else {
            return Err(refuse(name.to_string().into()));
        };
        if !known.contains(&name.as_str()) {
            return Err(refuse(with_near_miss(&name, known)));
        }
        if let Value::Table(mut full) = preset(&name)? {
            full.extend(std::mem::take(settings));
            *settings = full;
        }
    }
    Ok(())
}

/// Keys of stages that are tables of numbers by pattern.
const BY_PATTERN: [&str; 2] = ["learning_rates", "weight_decays"];

/// Joins what TOML and `--set` take apart at the dots of a pattern: `learning_rates.vision.blocks.0-5 = 1e-6` is one number,
/// of the pattern `vision.blocks.0-5`.
pub(super) fn flatten_patterns(table: &mut Table) {
    let Some(Value::Array(stages)) = table.get_mut("stage") else {
        return;
    };
    for stage in stages.iter_mut().filter_map(Value::as_table_mut) {
        for key in BY_PATTERN {
            if let Some(Value::Table(numbers)) = stage.get_mut(key) {
                let mut flat = Table::new();
                flatten("", std::mem::take(numbers), &mut flat);
                *numbers = flat;
            }
        }
    }
}

fn flatten(above: &str, table: Table, into: &mut Table) {
    for (key, value) in table {
        let path = match above {
            "" => key,
            above => format!("{above}.{key}"),
        };
        match value {
            Value::Table(below) => flatten(&path, below, into),
            value => {
                into.insert(path, value);
            }
        }
    }
}

fn as_value(config: impl Serialize) -> Value {
    Value::try_from(config).expect("a configuration is made of numbers and names")
}

/// Applies one `--set key.path=value`. A stage is named by its name: `stage.warm-up.steps=10`.
pub(super) fn apply_set(table: &mut Table, set: &str) -> Result<()> {
    let refuse = |want: &str, found: Found| Error::setting(format!("--set {set}"), want, found);
    let (path, value) = set
        .split_once('=')
        .ok_or_else(|| refuse("key=value", "no equals sign".into()))?;
    let value = parse_value(value.trim());
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse("key=value", "an empty key".into()));
    }
    let (last, keys) = keys.split_last().expect("a split gives at least one part");
    let mut here = table;
    let mut keys = keys.iter().copied();
    while let Some(key) = keys.next() {
        let next = here
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        here = match next {
            Value::Table(inner) => inner,
            Value::Array(stages) => {
                let names: Vec<String> = stages
                    .iter()
                    .filter_map(|stage| Some(stage.get("name")?.as_str()?.to_owned()))
                    .collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let want = format!("{key}.<one of {}>.<key>=value", names.join(", "));
                let Some(name) = keys.next() else {
                    return Err(refuse(&want, format!("{key}.{last}").into()));
                };
                let index = names.iter().position(|known| *known == name);
                let index = index.ok_or_else(|| refuse(&want, with_near_miss(name, &names)))?;
                match &mut stages[index] {
                    Value::Table(stage) => stage,
                    other => return Err(refuse("a table", other.type_str().into())),
                }
            }
            other => {
                return Err(refuse(
                    &format!("{key} to be a table"),
                    other.type_str().into(),
                ));
            }
        };
    }
    // A stage has one of the two: whoever sets one on the command line means it in place of the recipe's.
    for (set, other) in [("steps", "epochs"), ("epochs", "steps")] {
        if *last == set {
            here.remove(other);
        }
    }
    here.insert((*last).to_owned(), value);
    Ok(())
}

/// A TOML value, or a string where it is not one: `--set name=mine` needs no quotes.
fn parse_value(text: &str) -> Value {
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    match parsed {
        Ok(mut table) => table
            .remove("value")
            .unwrap_or_else(|| Value::String(text.to_owned())),
        Err(_) => Value::String(text.to_owned()),
    }
}
