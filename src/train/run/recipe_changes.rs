//! What differs between two recipes, setting by setting.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The settings in which `after` differs from `before`, both as TOML: `stage.warm-up.batch_size was 64, is 32`. Nothing where one
/// of them is no TOML.
pub(crate) fn changes(before: &str, after: &str) -> Vec<String> {
    let (Ok(before), Ok(after)) = (before.parse(), after.parse()) else {
        return Vec::new();
    };
    let order = order_change(&names(&before), &names(&after));
    let (before, after) = (settings(before), settings(after));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let text = |value: Option<&String>| value.map_or("left out".to_owned(), String::clone);
    let changed = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| {
            let (was, is) = (text(before.get(key)), text(after.get(key)));
            format!("{key} was {was}, is {is}")
        });
    changed.chain(order).collect()
}

/// How the first `count` stages differ between two recipes, by name and order: those that a checkpoint says are trained or under
/// way would be others.
pub(crate) fn moved_stages(before: &str, after: &str, count: usize) -> Option<String> {
    let first = |recipe: &str| -> Option<Vec<String>> {
        let mut names = names(&recipe.parse().ok()?);
        names.truncate(count);
        Some(names)
    };
    let (before, after) = (first(before)?, first(after)?);
    (before != after).then(|| {
        let (was, is) = (before.join(", "), after.join(", "));
        format!("the stages up to the one under way were {was}, are {is}")
    })
}

/// The stages' names, in order.
fn names(recipe: &Table) -> Vec<String> {
    let stages = recipe.get("stage").and_then(Value::as_array);
    let names = stages.into_iter().flatten();
    let names = names.filter_map(|stage| stage.get("name")?.as_str());
    names.map(str::to_owned).collect()
}

/// Which order stages had and have, where those that are in both come in another one.
fn order_change(before: &[String], after: &[String]) -> Option<String> {
    let both = |of: &[String], other: &[String]| -> Vec<String> {
        let kept = of.iter().filter(|name| other.contains(name));
        kept.cloned().collect()
    };
    if both(before, after) == both(after, before) {
        return None;
    }
    let (was, is) = (before.join(", "), after.join(", "));
    Some(format!("the order of the stages was {was}, is {is}"))
}

/// Every setting by its path; stages go by their names, as `--set` has them.
fn settings(recipe: Table) -> BTreeMap<String, String> {
    fn collect(path: String, value: &Value, into: &mut BTreeMap<String, String>) {
        let below = |key: &str| {
            if path.is_empty() {
                key.to_owned()
            } else {
                format!("{path}.{key}")
            }
        };
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    collect(below(key), value, into);
                }
            }
            Value::Array(values) if values.iter().all(Value::is_table) && !values.is_empty() => {
                for (index, value) in values.iter().enumerate() {
                    let name = value.get("name").and_then(Value::as_str);
                    let name = name.map_or_else(|| index.to_string(), str::to_owned);
                    collect(below(&name), value, into);
                }
            }
            value => {
                into.insert(path, value.to_string());
            }
        }
    }
    let mut into = BTreeMap::new();
    collect(String::new(), &Value::Table(recipe), &mut into);
    into
}
