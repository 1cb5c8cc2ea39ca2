//! One key of a `config.json`: the same row reads it into a model's settings and writes it from them.
//!
//! A family's keys are a table of such rows, so that what is written cannot drift from what is read.

use serde_json::{Map, Value as Json, json};

use super::super::hf_config::Settings;
use super::idle::Idle;
use keel_base::error::Result;

/// A key of the settings `C`.
#[derive(Debug)]
pub(crate) enum Key<C: 'static> {
    /// A whole number.
    Count {
        name: &'static str,
        default: usize,
        field: fn(&mut C) -> &mut usize,
    },
    /// A whole number that is written as height and width.
    Edges {
        name: &'static str,
        default: usize,
        field: fn(&mut C) -> &mut usize,
    },
    /// A number above 0.
    Float {
        name: &'static str,
        default: f64,
        field: fn(&mut C) -> &mut f32,
    },
    /// True or false.
    Switch {
        name: &'static str,
        default: bool,
        field: fn(&mut C) -> &mut bool,
    },
    /// A number of which Keel computes one value alone.
    OnlyCount {
        name: &'static str,
        want: usize,
        default: usize,
    },
    /// A switch that Keel computes one way alone.
    OnlySwitch {
        name: &'static str,
        want: bool,
        default: bool,
    },
    /// A text of which Keel computes one value alone.
    OnlyText {
        name: &'static str,
        want: &'static str,
        default: &'static str,
    },
    /// What changes nothing of what a model computes, at the values that the row allows. Never written.
    Idle(Idle),
    /// A switch that changes nothing of what Keel computes, and is written as false.
    IdleSwitch { name: &'static str },
    /// Whether the folder holds what pools the tower's tokens, on where the key is absent. Towers are written without it.
    Pools { name: &'static str },
    /// A number that is written for other programs and not read.
    Hint { name: &'static str, value: usize },
    /// Anything else.
    Own {
        name: &'static str,
        read: fn(&Settings, &mut C) -> Result<()>,
        write: fn(&C) -> Json,
    },
    /// Refuses what earlier rows allow one by one and not together, or a key that is never written.
    Check(fn(&Settings, &C) -> Result<()>),
}

impl<C: Clone> Key<C> {
    /// The key, where the row has one.
    fn name(&self) -> Option<&'static str> {
        match self {
            Key::Count { name, .. }
            | Key::Edges { name, .. }
            | Key::Float { name, .. }
            | Key::Switch { name, .. }
            | Key::OnlyCount { name, .. }
            | Key::OnlySwitch { name, .. }
            | Key::OnlyText { name, .. }
            | Key::Idle(Idle { name, .. })
            | Key::IdleSwitch { name }
            | Key::Pools { name }
            | Key::Hint { name, .. }
            | Key::Own { name, .. } => Some(name),
            Key::Check(_) => None,
        }
    }

    fn read(&self, settings: &Settings, config: &mut C) -> Result<()> {
        match *self {
            Key::Count {
                name,
                default,
                field,
            }
            | Key::Edges {
                name,
                default,
                field,
            } => *field(config) = settings.number(name, default)?,
            Key::Float {
                name,
                default,
                field,
            } => *field(config) = settings.positive(name, default)?,
            Key::Switch {
                name,
                default,
                field,
            } => *field(config) = settings.switch(name, default)?,
            Key::OnlyCount {
                name,
                want,
                default,
            } => settings.only_number(name, want, default)?,
            Key::OnlySwitch {
                name,
                want,
                default,
            } => settings.only_switch(name, want, default)?,
            Key::OnlyText {
                name,
                want,
                default,
            } => settings.only_text(name, want, default)?,
            Key::Idle(idle) => settings.idle(idle)?,
            Key::IdleSwitch { name } | Key::Pools { name } => {
                settings.switch(name, true)?;
            }
            Key::Hint { .. } => {}
            Key::Own { read, .. } => read(settings, config)?,
            Key::Check(check) => check(settings, config)?,
        }
        Ok(())
    }

    /// What the key says of these settings; nothing for a key that is never written.
    fn write(&self, config: &C) -> Option<Json> {
        // Rows know where a field is, which takes settings that may be changed; settings are small, so a copy serves.
        let mut copy = config.clone();
        Some(match *self {
            Key::Count { field, .. } => json!(*field(&mut copy)),
            Key::Edges { field, .. } => vec![*field(&mut copy); 2].into(),
            Key::Float { field, .. } => plain(*field(&mut copy)),
            Key::Switch { field, .. } => json!(*field(&mut copy)),
            Key::OnlyCount { want, .. } => json!(want),
            Key::OnlySwitch { want, .. } => json!(want),
            Key::OnlyText { want, .. } => json!(want),
            Key::IdleSwitch { .. } | Key::Pools { .. } => json!(false),
            Key::Hint { value, .. } => json!(value),
            Key::Own { write, .. } => write(config),
            Key::Idle(_) | Key::Check(_) => return None,
        })
    }
}

/// A table of keys, in groups, so that families can share some of them.
pub(crate) type Keys<C> = &'static [&'static [Key<C>]];

/// Reads the keys in the table's order. `form` holds what no key says.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] naming the first key that is of the wrong type, or that Keel has no code for.
pub(crate) fn read_keys<C: Clone>(keys: Keys<C>, form: &C, settings: &Settings) -> Result<C> {
    let mut config = form.clone();
    for key in keys.iter().copied().flatten() {
        key.read(settings, &mut config)?;
    }
    Ok(config)
}

/// What one key of the table says of these settings.
pub(crate) fn write_key<C: Clone>(keys: Keys<C>, config: &C, name: &str) -> Json {
    let mut keys = keys.iter().copied().flatten();
    let key = keys.find(|key| key.name() == Some(name));
    key.and_then(|key| key.write(config)).unwrap_or_else(|| {
        unreachable!("{name} is in its family's table, by a row that is written")
    })
}

/// Writes the keys that `names` lists, in its order, which is that of published files.
pub(crate) fn write_keys<C: Clone>(
    keys: Keys<C>,
    config: &C,
    (architecture, model_type): (&str, &str),
    names: &[&str],
) -> Map<String, Json> {
    let value = |name: &str| match name {
        "architectures" => json!([architecture]),
        "model_type" => json!(model_type),
        _ => write_key(keys, config, name),
    };
    names
        .iter()
        .map(|name| ((*name).to_owned(), value(name)))
        .collect()
}

/// The number as its shortest text in single precision says it: 1e-6, not 9.99999997e-7.
pub(crate) fn plain(value: f32) -> Json {
    let text = format!("{value}");
    json!(text.parse::<f64>().unwrap_or(f64::from(value)))
}
