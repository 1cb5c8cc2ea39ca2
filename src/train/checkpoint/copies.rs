//! Whether the ranks of a run still hold the same parameters. They do by construction: each parameter is updated by one rank
//! and copied by the others. A machine that does not compute reliably breaks that, and its checkpoint must not be gone on from.

use std::collections::HashMap;

use crate::run::Run;
use keel_base::error::{Error, Result};

/// Parameters that are read at once.
const PIECE: usize = 1 << 20;

/// Ends the run on all ranks where their parameters differ in any bit after `place`. One rank alone agrees with itself.
///
/// # Errors
/// [`Error::CopiesDiffer`]; whatever the executor and the votes report.
pub(super) fn hold_alike(run: &Run, place: &str) -> Result<()> {
    if run.ranks() == 1 {
        return Ok(());
    }
    let votes = run.options.seat.votes();
    let own = checksum_of(run)?;
    let heard = votes.gather("checksums of the parameters", &own.to_le_bytes())?;
    let odd = odd_ones(&heard);
    if odd.is_empty() {
        return Ok(());
    }
    let named = votes.named(&odd);
    let found = match odd.len() {
        1 => format!("{named} holds other parameters than the others"),
        many if 2 * many < heard.len() => format!("{named} hold other parameters than the others"),
        _ => format!("{named} hold different parameters"),
    };
    let place = place.to_owned();
    Err(Error::CopiesDiffer { place, found })
}

/// Σ bitsᵢ (2i + 1) mod 2⁶⁴ over all parameters: as fast as they are read, and never the same where one element differs.
fn checksum_of(run: &Run) -> Result<u64> {
    let elements = run.layout.elements();
    let mut values = vec![0.0f32; PIECE.min(elements)];
    let mut sum = 0u64;
    for first in (0..elements).step_by(PIECE) {
        let piece = &mut values[..PIECE.min(elements - first)];
        run.executor.read_parameters(first, piece)?;
        let terms = piece.iter().zip(first as u64..);
        sum = terms.fold(sum, |sum, (value, element)| {
            sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(2 * element + 1))
        });
    }
    Ok(sum)
}

/// The ranks that say something else than more than half do; all of them where no more than half agree.
fn odd_ones(heard: &[Vec<u8>]) -> Vec<usize> {
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for said in heard {
        *counts.entry(said).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .find(|(_, count)| 2 * count > heard.len());
    let is_odd = |rank: &usize| most.is_none_or(|(said, _)| heard[*rank] != said);
    (0..heard.len()).filter(is_odd).collect()
}
