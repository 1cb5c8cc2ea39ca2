//! Whether all ranks were started alike: another build, another recipe or other data on one of them is a sentence in the first
//! second, and not a hang or a wrong model.

use serde::{Deserialize, Serialize};

use super::cause::placed;
use crate::Votes;
use keel_base::error::{Error, Result};

/// Something that has to be the same on all ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is, as in "another recipe".
    pub what: String,
    /// Its value or the hash of it.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(what: impl ToString, value: impl ToString) -> Fact {
        Fact {
            what: what.to_string(),
            value: value.to_string(),
        }
    }
}

/// Compares facts over all ranks; every rank comes to the same verdict. `hosts` names their places.
///
/// # Errors
/// [`Error::Content`] naming the ranks that differ from the most common value of the first fact that differs, and both
/// values; whatever voting reports.
pub fn check_alike(votes: &dyn Votes, hosts: &[String], facts: &[Fact]) -> Result<()> {
    let own = serde_json::to_vec(facts).expect("text is written to memory");
    let parts = votes.gather("what they were started with", &own)?;
    let read = |part: &Vec<u8>| serde_json::from_slice::<Vec<Fact>>(part).unwrap_or_default();
    let all: Vec<Vec<Fact>> = parts.iter().map(read).collect();
    let count = all.iter().map(Vec::len).max().unwrap_or(0);
    for index in 0..count {
        let values: Vec<Option<&Fact>> = all.iter().map(|facts| facts.get(index)).collect();
        let usual = most_common(&values);
        let others: Vec<usize> = (0..values.len())
            .filter(|rank| values[*rank] != usual)
            .collect();
        if let Some(first) = others.first() {
            return Err(different(&others, values[*first], usual, hosts));
        }
    }
    Ok(())
}

/// The value of most ranks; of equally many, that of the lowest rank.
fn most_common<'a>(values: &[Option<&'a Fact>]) -> Option<&'a Fact> {
    let votes = |value: &Option<&Fact>| values.iter().filter(|other| *other == value).count();
    // The last of equal ones is taken: from the other end it is the first.
    values
        .iter()
        .rev()
        .max_by_key(|value| votes(value))
        .copied()
        .flatten()
}

fn different(
    others: &[usize],
    found: Option<&Fact>,
    usual: Option<&Fact>,
    hosts: &[String],
) -> Error {
    let what = usual.or(found).map_or("program", |fact| &fact.what);
    let shown = |fact: Option<&Fact>| fact.map_or("nothing", |fact| &fact.value).to_owned();
    let they = if others.len() == 1 {
        "it has"
    } else {
        "they have"
    };
    Error::content(
        placed(others, hosts),
        format!(
            "{they} another {what} than the others: {}, not {}",
            shown(found),
            shown(usual)
        ),
        "start all ranks with the same program and the same files",
    )
}
