//! The page: a section for each table, a row for each key.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::COMMAND;
use super::schema::{Absent, Choice, Key, Kind, Schema};

/// What stands before the tables.
const HEAD: &str = "\
A recipe is a TOML file: what a run trains, on what, and how. `keel train --recipe` takes a built-in one by name or a file by
path, and `--set KEY=VALUE` changes one setting of it: `--set model.vision.depth=4`, `--set
stage.fine-grained.learning_rate=1e-4`, a stage by its name. `keel plan --recipe` says what a recipe takes before it runs.

Unknown keys, old names and values out of range are refused with file and line before anything runs. Where a value is
published, the source says by whom.
";

/// What stands before the tables of plans.
const PLAN_HEAD: &str = "\
`keel ablate` takes a built-in plan by name or a file by path. [ablations.md](ablations.md) says what a plan measures.
";

/// Keys that a table has beside those of its struct: presets, which are replaced by what they stand for.
const PRESETS: [(&str, &str); 2] = [
    ("model.vision", "VISION_PRESETS"),
    ("model.language", "LANGUAGE_PRESETS"),
];

/// Tables of weights by name, and the type whose constants have the names.
const NAMES: [(&str, &str); 1] = [("stage.data", "Task")];

/// The page so far.
struct Page<'a> {
    schema: &'a Schema,
    text: String,
    /// Choices whose values stand on it.
    told: BTreeSet<String>,
}

/// The page for recipes and ablation plans.
///
/// # Errors
/// A sentence naming the key that lacks what a reader needs.
pub fn page(schema: &Schema) -> Result<String, String> {
    let mut page = Page {
        schema,
        text: format!(
            "# Recipes\n\n<!-- Written by `{COMMAND}` from the doc comments of the types that recipes are read into: edit those. -->\n\n{HEAD}"
        ),
        told: BTreeSet::new(),
    };
    page.table("", "Recipe", "The run")?;
    page.old_names("RENAMED_RECIPE_KEYS")?;
    page.text.push_str("\n# Ablation plans\n\n");
    page.text.push_str(PLAN_HEAD);
    page.table("", "AblationPlan", "The plan")?;
    page.old_names("RENAMED_PLAN_KEYS")?;
    Ok(page.text)
}

impl Page<'_> {
    /// The section of the table at `path`, and those of the tables in it.
    fn table(&mut self, path: &str, name: &str, title: &str) -> Result<(), String> {
        let (doc, keys) = self.schema.table(name)?;
        let _ = write!(
            self.text,
            "\n## {title}\n\n{}\n\n| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n",
            doc.text
        );
        if let Some((_, constant)) = PRESETS.iter().find(|(table, _)| *table == path) {
            let (names, text) = self.schema.texts(constant)?;
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(
                self.text,
                "| `preset` | {} | *optional* |  | {} |",
                names.join(", "),
                cell(text)
            );
        }
        for key in &keys {
            self.row(name, key)?;
        }
        let below = |key: &Key| match path {
            "" => key.name.clone(),
            path => format!("{path}.{}", key.name),
        };
        for key in &keys {
            let names = NAMES.iter().find(|(path, _)| *path == below(key));
            match &key.kind {
                Kind::Named(choice) if !self.schema.is_table(choice) => {
                    self.choices(&key.name, choice)?;
                }
                _ => {
                    if let Some((_, choice)) = names {
                        self.choices(&key.name, choice)?;
                    }
                }
            }
        }
        // Tables come after all that is said of this one, each with those in it.
        for key in &keys {
            let below = below(key);
            match &key.kind {
                Kind::Named(inner) if self.schema.is_table(inner) => {
                    self.table(&below, inner, &format!("[{below}]"))?;
                }
                Kind::List(inner) => {
                    if let Kind::Named(inner) = &**inner {
                        self.table(&below, inner, &format!("[[{below}]]"))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn row(&mut self, of: &str, key: &Key) -> Result<(), String> {
        let lacks = |what: &str| format!("{of}.{}: its doc comment has no {what}", key.name);
        if key.doc.text.is_empty() {
            return Err(lacks("text"));
        }
        let is_number = matches!(key.kind, Kind::Whole | Kind::Number | Kind::Numbers(_));
        if is_number && key.doc.range.is_none() {
            return Err(lacks("line \"- Range: …\", which every number needs"));
        }
        let mut kind = self.kind(&key.kind)?;
        if let Some(unit) = &key.doc.unit {
            let _ = write!(kind, " of {unit}");
        }
        let absent = match &key.absent {
            Absent::Required => "*required*".to_owned(),
            Absent::Nothing => "*optional*".to_owned(),
            Absent::Value(value) => format!("`{value}`"),
            Absent::Table => "its defaults".to_owned(),
        };
        let mut meaning = key.doc.text.clone();
        if let Some(source) = &key.doc.source {
            let _ = write!(meaning, "<br>*Source:* {source}.");
        }
        let range = key.doc.range.as_deref().unwrap_or_default();
        let _ = writeln!(
            self.text,
            "| `{}` | {} | {absent} | {} | {} |",
            key.name,
            cell(&kind),
            cell(range),
            cell(&meaning)
        );
        Ok(())
    }

    fn kind(&self, kind: &Kind) -> Result<String, String> {
        Ok(match kind {
            Kind::Whole => "whole number".to_owned(),
            Kind::Number => "number".to_owned(),
            Kind::Switch => "`true` or `false`".to_owned(),
            Kind::Text => "text".to_owned(),
            Kind::Numbers(length) => format!("list of {length} numbers"),
            Kind::Weights => "table of numbers".to_owned(),
            Kind::Names => "table of text".to_owned(),
            Kind::List(inner) => match &**inner {
                Kind::Named(_) => "list of tables".to_owned(),
                Kind::Whole => "list of whole numbers".to_owned(),
                Kind::Text => "list of text".to_owned(),
                _ => {
                    return Err("a list of something else than tables, numbers and text".to_owned());
                }
            },
            Kind::Named(name) if self.schema.is_table(name) => "table".to_owned(),
            Kind::Named(name) => {
                let choices = self.schema.choices(name)?.1;
                let names: Vec<String> = choices.iter().map(written).collect();
                names.join(", ")
            }
        })
    }

    /// The values of a choice, one a line, where they are not on the page yet.
    fn choices(&mut self, key: &str, name: &str) -> Result<(), String> {
        if !self.told.insert(name.to_owned()) {
            return Ok(());
        }
        let (doc, choices) = self.schema.choices(name)?;
        let _ = write!(self.text, "\n**`{key}`**: {}\n\n", doc.text);
        for choice in &choices {
            if choice.doc.text.is_empty() {
                return Err(format!("{name}: {} has no doc comment", choice.name));
            }
            let _ = writeln!(self.text, "- {}: {}", written(choice), choice.doc.text);
        }
        Ok(())
    }

    fn old_names(&mut self, constant: &str) -> Result<(), String> {
        let rows = self.schema.old_names(constant)?;
        self.text.push_str(
            "\n## Renamed\n\nThe old name is refused, with the new one in the message.\n\n| old | new | since |\n| --- | --- | --- |\n",
        );
        for [old, new, since] in rows {
            let (table, last) = old.rsplit_once('.').unwrap_or(("", &old));
            // A value that was renamed stands after its key.
            let new = match last.split_once('=') {
                Some((key, _)) => format!("{key}={new}"),
                None => new,
            };
            let new = match table {
                "" => new,
                table => format!("{table}.{new}"),
            };
            let _ = writeln!(self.text, "| `{old}` | `{new}` | {since} |");
        }
        Ok(())
    }
}

fn written(choice: &Choice) -> String {
    if choice.takes_number {
        format!("`{{ {} = N }}`", choice.name)
    } else {
        format!("`{}`", choice.name)
    }
}

/// Text that stands in a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
