//! What differs between two recipes, setting by setting.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The settings in which `after` differs from `before`, both as TOML: `stage.warm-up.batch_size was 64, is 32`. Nothing where one
/// of them is no TOML.
pub(crate) fn changes(before: &str, after: &str) -> Vec<String> {
    let (Ok(before), Ok(after)) = (before.parse(), after.parse()) else {
        return Vec::new();
    };
    let (before, after) = (settings(before), settings(after));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let text = |value: Option<&String>| value.map_or("left out".to_owned(), String::clone);
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| {
            let (was, is) = (text(before.get(key)), text(after.get(key)));
            format!("{key} was {was}, is {is}")
        })
        .collect()
}

/// Every setting by its path; stages go by their names, as `--set` has them.
fn settings(recipe: Table) -> BTreeMap<String, String> {
    fn gather(path: String, value: &Value, into: &mut BTreeMap<String, String>) {
        let below = |key: &str| match path.is_empty() {
            true => key.to_owned(),
            false => format!("{path}.{key}"),
        };
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    gather(below(key), value, into);
                }
            }
            Value::Array(values) if values.iter().all(Value::is_table) && !values.is_empty() => {
                for (index, value) in values.iter().enumerate() {
                    let name = value.get("name").and_then(Value::as_str);
                    let name = name.map_or_else(|| index.to_string(), str::to_owned);
                    gather(below(&name), value, into);
                }
            }
            value => {
                into.insert(path, value.to_string());
            }
        }
    }
    let mut into = BTreeMap::new();
    gather(String::new(), &Value::Table(recipe), &mut into);
    into
}
