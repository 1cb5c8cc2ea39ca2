//! Reads a model's settings key by key, so that no key goes unnoticed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::families::{Idle, IdleAt, shared, shared_names};
use super::foreign_format::quantisation;
use keel_base::error::{Error, Result, near_miss};

/// Shares of units that training elsewhere drops at random, and other chance of it. They change nothing of what a trained model computes. Of these Keel
/// trains with `drop_path_rate`: stages that train the folder's tower take it.
const REGULARISERS: &[&str] = &[
    "attn_drop_rate",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "drop_rate",
    "dropout",
    "embd_pdrop",
    "hidden_dropout_prob",
    "patch_drop_rate",
    "patch_dropout",
    "pos_drop_rate",
    "proj_drop_rate",
    // DINOv3 moves and stretches the coordinates of its rotary positions.
    "pos_embed_jitter",
    "pos_embed_rescale",
    "pos_embed_shift",
    "projection_dropout",
    "resid_pdrop",
];

/// Keys that say how numbers are stored by other types than Keel reads, in transformers and in MLX.
const QUANTISED: &[&str] = &["quantization_config", "quantization"];

/// One object of `config.json`.
pub(super) struct Settings<'a> {
    what: String,
    map: &'a Map<String, Json>,
    read: RefCell<BTreeSet<&'static str>>,
    /// Regularisers that objects inside have on.
    noted: RefCell<Vec<String>>,
}

impl<'a> Settings<'a> {
    /// `what` names the object in messages.
    pub fn new(what: String, map: &'a Map<String, Json>) -> Settings<'a> {
        Settings {
            what,
            map,
            read: RefCell::default(),
            noted: RefCell::default(),
        }
    }

    /// What the object is called in messages.
    pub fn what(&self) -> &str {
        &self.what
    }

    fn get(&self, key: &'static str) -> Option<&'a Json> {
        self.read.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn name(&self, key: &str) -> String {
        format!("{}: {key}", self.what)
    }

    /// Whether the key is there, without counting it as read.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the key is there and holds null.
    pub fn is_null(&self, key: &'static str) -> bool {
        self.map.get(key).is_some_and(Json::is_null)
    }

    /// A whole number; a list of equal numbers, as for height and width, is one.
    pub fn number(&self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let one = match value.as_array().map(Vec::as_slice) {
            Some([first, rest @ ..]) if rest.iter().all(|x| x == first) => first,
            _ => value,
        };
        match one.as_u64() {
            Some(number) => Ok(number as usize),
            None => Err(Error::setting(self.name(key), "a whole number", value)),
        }
    }

    /// A number that single precision holds.
    pub fn float(&self, key: &'static str, default: f64) -> Result<f32> {
        match self.get(key) {
            None => Ok(default as f32),
            Some(value) => self.single(key, value),
        }
    }

    /// A number above 0.
    pub fn positive(&self, key: &'static str, default: f64) -> Result<f32> {
        let number = self.float(key, default)?;
        if number > 0.0 {
            return Ok(number);
        }
        let found = self.map.get(key).unwrap_or(&Json::Null);
        Err(Error::setting(self.name(key), "a number above 0", found))
    }

    /// `value` of `key`, which may be a path within the object, in single precision.
    pub fn single(&self, key: &str, value: &Json) -> Result<f32> {
        let number = value.as_f64().map(|number| number as f32);
        number.filter(|number| number.is_finite()).ok_or_else(|| {
            let want = format!("a number of at most {:e}", f32::MAX);
            Error::setting(self.name(key), want, value)
        })
    }

    /// True or false.
    pub fn switch(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| Error::setting(self.name(key), "true or false", value)),
        }
    }

    /// A text.
    pub fn text(&self, key: &'static str, default: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| Error::setting(self.name(key), "a text", value)),
        }
    }

    /// An object, where there is one.
    pub fn object(&self, key: &'static str) -> Result<Option<&'a Map<String, Json>>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_object() {
                Some(map) => Ok(Some(map)),
                None => Err(Error::setting(self.name(key), "an object", value)),
            },
        }
    }

    /// Texts, where there are any.
    pub fn texts(&self, key: &'static str) -> Result<Vec<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Json::as_str).collect());
        texts.ok_or_else(|| Error::setting(self.name(key), "a list of texts", value))
    }

    /// Refuses what Keel has no code for.
    pub fn refuse(&self, key: &str, want: impl ToString, found: impl ToString) -> Error {
        let want = format!("{}, the only form Keel computes", want.to_string());
        Error::setting(self.name(key), want, found)
    }

    /// Refuses a switch that stands the wrong way.
    pub fn only_switch(&self, key: &'static str, want: bool, default: bool) -> Result<()> {
        match self.switch(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// Refuses another text.
    pub fn only_text(&self, key: &'static str, want: &'a str, default: &'a str) -> Result<()> {
        match self.text(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// A layer counted from the end, −1 the last and the default.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the key where it holds anything else.
    pub fn layer(&self, key: &'static str) -> Result<i64> {
        match self.get(key) {
            None => Ok(-1),
            Some(value) => match value.as_i64() {
                Some(layer) if layer < 0 => Ok(layer),
                _ => Err(self.refuse(key, "a layer counted from the end, such as -1 or -2", value)),
            },
        }
    }

    /// Refuses another number.
    pub fn only_number(&self, key: &'static str, want: usize, default: usize) -> Result<()> {
        match self.number(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// Takes a key that changes nothing at the values that its row allows, and refuses others.
    pub fn idle(&self, idle: Idle) -> Result<()> {
        match self.get(idle.name) {
            Some(value) if !idle.at.holds(value) => {
                Err(self.refuse(idle.name, IdleAt::wanted(value), value))
            }
            _ => Ok(()),
        }
    }

    /// Takes the regularisers that an object inside this one has on.
    pub fn note(&self, regularisers: Vec<String>) {
        self.noted.borrow_mut().extend(regularisers);
    }

    /// Refuses keys that nobody read and that may change what the model computes. Returns the regularisers that are on.
    pub fn finish(self) -> Result<Vec<String>> {
        let read = self.read.borrow();
        let mut on = self.noted.take();
        for (key, value) in self.map {
            if REGULARISERS.contains(&key.as_str()) {
                if value.as_f64().is_some_and(|share| share > 0.0) {
                    on.push(format!("{key} {value}"));
                }
                continue;
            }
            if read.contains(key.as_str()) {
                continue;
            }
            if QUANTISED.contains(&key.as_str())
                && let Some(found) = quantisation(value)
            {
                let want = "weights as F32, F16 or BF16: give the folder that was quantised";
                return Err(Error::setting(self.name(key), want, found));
            }
            match shared(key) {
                Some(at) if at.holds(value) => {}
                Some(_) => return Err(self.refuse(key, IdleAt::wanted(value), value)),
                None => {
                    let names = read.iter().copied().chain(shared_names());
                    let names: Vec<&str> = names.collect();
                    let near = match near_miss(key, &names) {
                        Some(near) => format!(", the nearest being {near}"),
                        None => String::new(),
                    };
                    let want = format!(
                        "only settings that Keel knows for this model{near}; take it out if it does not change what the model \
                         computes"
                    );
                    return Err(Error::setting(self.name(key), want, value));
                }
            }
        }
        Ok(on)
    }
}
