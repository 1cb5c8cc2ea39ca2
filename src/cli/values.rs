//! How values of options are read: names out of a list, counts, sizes in bytes. What each expects is said in the one form that
//! settings of a recipe have, by explain.rs.

use std::fmt;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use keel_engine::executor::Device;

/// What an option would have accepted; the reason of a value that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// The rule, to be read after "expected".
    pub want: String,
    /// What was probably meant.
    pub near: Option<String>,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.want)
    }
}

impl std::error::Error for Expected {}

/// What [`Expected`] is made of where nothing is near.
fn expected<T>(want: impl Into<String>) -> Result<T, Expected> {
    Err(Expected {
        want: want.into(),
        near: None,
    })
}

/// One of `all`, by the name that the library has for it; help and completions list them.
pub(super) fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    one_of(all, name, move |one| PossibleValue::new(name(one)))
}

/// As [`named`], with a few words about each.
pub(super) fn described<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
    about: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    one_of(all, name, move |one| {
        PossibleValue::new(name(one)).help(about(one))
    })
}

fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
    value: impl Fn(T) -> PossibleValue + 'static,
) -> impl TypedValueParser<Value = T> {
    let values = all.iter().map(|one| value(*one));
    PossibleValuesParser::new(values).map(move |text| {
        let found = all.iter().find(|one| name(**one) == text);
        *found.expect("no other name gets past the list")
    })
}

/// A device, `gpu` included.
pub(super) fn device() -> impl TypedValueParser<Value = Device> {
    let values = Device::ALL.map(|device| {
        let value = PossibleValue::new(device.name()).help(device.about());
        match device {
            Device::Cuda => value.alias(Device::GPU),
            _ => value,
        }
    });
    PossibleValuesParser::new(values).try_map(|text| text.parse::<Device>())
}

/// A share, as 20% or 0.2.
pub(super) fn percent(text: &str) -> Result<f64, Expected> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    match share {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => expected("a share from 0% to 100%, such as 20% or 0.2"),
    }
}

/// Which samples a run is validated on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Validate {
    /// A share of its own data, above 0 and below 1.
    Share(f64),
    /// Data of their own.
    Data(String),
}

impl fmt::Display for Validate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Validate::Share(share) => write!(f, "{share}"),
            Validate::Data(spec) => f.write_str(spec),
        }
    }
}

/// A share, as 2% or 0.02, or data.
pub(super) fn validate(text: &str) -> Result<Validate, Expected> {
    let want = "a share above 0% and below 100%, such as 2%, or data as --data takes them";
    let is_share = text.ends_with('%') || text.parse::<f64>().is_ok();
    if !is_share {
        return match text.is_empty() {
            true => expected(want),
            false => Ok(Validate::Data(text.to_owned())),
        };
    }
    match percent(text) {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(Validate::Share(share)),
        _ => expected(want),
    }
}

/// Gigabytes a second: any number above 0.
pub(super) fn rate(text: &str) -> Result<f64, Expected> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => expected("a number above 0, such as 45"),
    }
}

/// The most steps, checkpoints or whatever else is only counted: more than any run comes to, and far from where sums overflow.
const MOST_COUNTED: u64 = 1_000_000_000_000;

/// The most things that memory is taken for: the largest size that a model may have.
const MOST_HELD: u64 = 1 << 20;

/// The most images of an evaluation set, which are in memory together.
const MOST_IMAGES: u64 = 1 << 16;

/// A whole number in a range.
fn between(text: &str, least: u64, most: u64) -> Result<u64, Expected> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => expected(format!("a whole number from {least} to {most}")),
    }
}

/// A whole number.
pub(super) fn whole(text: &str) -> Result<u64, Expected> {
    between(text, 0, MOST_COUNTED)
}

/// A whole number from 1 up.
pub(super) fn at_least_one(text: &str) -> Result<u64, Expected> {
    between(text, 1, MOST_COUNTED)
}

/// A number of images that are evaluated on.
pub(super) fn evaluation_images(text: &str) -> Result<u64, Expected> {
    between(text, 1, MOST_IMAGES)
}

/// A size or number of things that a program is made for: from 1 up.
pub(super) fn count(text: &str) -> Result<usize, Expected> {
    between(text, 1, MOST_HELD).map(|number| number as usize)
}

/// The most threads that may be asked for.
const MOST_THREADS: usize = 1024;

/// A number of threads.
pub(super) fn threads(text: &str) -> Result<usize, Expected> {
    match text.parse() {
        Ok(number) if (1..=MOST_THREADS).contains(&number) => Ok(number),
        _ => expected(format!("a whole number from 1 to {MOST_THREADS}")),
    }
}

/// A seed. Recipes are TOML, whose whole numbers have a sign.
pub(super) fn seed(text: &str) -> Result<u64, Expected> {
    match text.parse() {
        Ok(number) if number <= i64::MAX as u64 => Ok(number),
        _ => expected(format!("a whole number from 0 to {}", i64::MAX)),
    }
}

/// The largest threshold in standard deviations: nothing is further off.
const MOST_DEVIATIONS: f64 = 1e9;

/// A number from 0 up.
pub(super) fn threshold(text: &str) -> Result<f64, Expected> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=MOST_DEVIATIONS).contains(&number) => Ok(number),
        _ => expected(format!("a number from 0 to {MOST_DEVIATIONS}")),
    }
}

/// A temperature of sampling.
pub(super) fn temperature(text: &str) -> Result<f64, Expected> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => expected("a number above 0 and at most 100"),
    }
}

/// A share of probability.
pub(super) fn probability(text: &str) -> Result<f64, Expected> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => expected("a number above 0 and at most 1"),
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// The largest size in bytes, 1024⁵: more than any machine has.
const MOST_BYTES: f64 = 1024.0 * 1024.0 * 1024.0 * MIB;

/// Bytes from a text such as `512M` or `80G` (powers of 1024). A small number without a unit is refused: whoever writes 8
/// means gigabytes, and 8 bytes are never meant.
pub(super) fn size(text: &str) -> Result<u64, Expected> {
    let want = "a size such as 512M or 80G (units K, M, G: powers of 1024)";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => None,
        "b" => Some(1.0),
        "k" | "kib" | "kb" => Some(1024.0),
        "m" | "mib" | "mb" => Some(MIB),
        "g" | "gib" | "gb" => Some(1024.0 * MIB),
        _ => return expected(want),
    };
    let number: f64 = match digits.trim().parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => number,
        _ => return expected(want),
    };
    if unit.is_none() && number < MIB {
        let unit = match number {
            ..=128.0 => "G",
            ..=131_072.0 => "M",
            _ => "K",
        };
        return Err(Expected {
            want: format!("{want}; {text} without a unit is {text} bytes"),
            near: Some(format!("{text}{unit}")),
        });
    }
    let bytes = number * unit.unwrap_or(1.0);
    if bytes > MOST_BYTES {
        return expected(format!("{want}, at most {}G", 1 << 20));
    }
    Ok(bytes as u64)
}

/// As [`size()`], or 0.
pub(super) fn size_or_none(text: &str) -> Result<u64, Expected> {
    match text.trim() {
        "0" => Ok(0),
        text => size(text),
    }
}
