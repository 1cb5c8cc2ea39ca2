//! What ranks tell one another of the micro-batches that they compute at the same time, before they compute them: how much
//! each weighs in the loss, what was left out, and which images and captions of others are equal to one's own.

use crate::recipe::Stage;
use keel_base::error::Result;
use keel_data::batch::Batch;
use keel_data::identities::identities_of;
use keel_ranks::Votes;

/// What a micro-batch weighs in its step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MicroWeight {
    /// This rank's micro-batch.
    pub own: f32,
    /// Those of all ranks together; of one rank alone, its own.
    pub all: f32,
    /// Those of each rank, where their gradients are added in a tree and their order must not depend on the ranks.
    pub each: Vec<f32>,
    /// The contrastive loss that it is compared in: its own, or that of all ranks.
    pub contrastive: f32,
    /// Samples that were left out for them.
    pub left_out: u64,
    /// This rank's micro-batch among those of the stage, of all ranks.
    pub number: u64,
    /// Which of this rank's micro-batches of the step it is, from 0.
    pub place: i32,
}

impl MicroWeight {
    /// Of micro-batch `number` of one rank alone.
    pub fn alone(own: f32, number: u64) -> MicroWeight {
        MicroWeight {
            own,
            all: own,
            each: vec![own],
            contrastive: own,
            number,
            ..MicroWeight::default()
        }
    }
}

/// Samples that were left out of a batch.
fn left_out(batch: &Batch) -> u64 {
    let skipped = batch.skipped;
    u64::from(skipped.unreadable + skipped.too_long + skipped.without_room)
}

/// Exchanges what ranks have to know of their micro-batches. `batch` then counts the pairs of all ranks, and tells all their
/// rows apart, unless their gradients are added `in_tree`, where each is compared within itself; `alone` is what this one
/// weighs alone.
///
/// # Errors
/// Whatever the votes report.
pub(super) fn meet(
    votes: &dyn Votes,
    stage: &Stage,
    batch: &mut Batch,
    alone: MicroWeight,
    in_tree: bool,
) -> Result<MicroWeight> {
    let (own, left_out) = (alone.own, left_out(batch));
    if votes.world().ranks == 1 {
        return Ok(MicroWeight { left_out, ..alone });
    }
    let mut told = Vec::new();
    told.extend(own.to_le_bytes());
    told.extend(left_out.to_le_bytes());
    told.extend(batch.pair_counts[0].to_le_bytes());
    let is_contrastive = stage.contrastive_weight > 0.0 && !in_tree;
    if is_contrastive {
        told.extend(
            batch
                .contents
                .iter()
                .flatten()
                .flat_map(|n| n.to_le_bytes()),
        );
    }
    let heard = votes.gather("a micro-batch", &told)?;
    let heard: Vec<Told> = heard.iter().map(|bytes| Told::read(bytes)).collect();
    // Where no token is predicted every micro-batch weighs the same, and so do those of one moment together.
    let all = if stage.next_token_weight > 0.0 {
        heard.iter().map(|rank| f64::from(rank.weight)).sum::<f64>() as f32
    } else {
        own
    };
    if is_contrastive {
        let counts = heard.iter().map(|rank| rank.pairs);
        batch.pair_counts = counts.clone().chain([counts.sum()]).collect();
        let rows = || heard.iter().flat_map(|rank| rank.contents.iter());
        batch.image_identities = identities_of(rows().map(|[image, _]| *image));
        batch.caption_identities = identities_of(rows().map(|[_, caption]| *caption));
    }
    Ok(MicroWeight {
        all,
        each: heard.iter().map(|rank| rank.weight).collect(),
        contrastive: if in_tree { own } else { all },
        left_out: heard.iter().map(|rank| rank.left_out).sum(),
        ..alone
    })
}

/// What a rank told of its micro-batch.
struct Told {
    weight: f32,
    left_out: u64,
    pairs: i32,
    contents: Vec<[u64; 2]>,
}

impl Told {
    fn read(bytes: &[u8]) -> Told {
        const WHOLE: &str = "every rank tells all of it";
        let (weight, rest) = bytes.split_first_chunk().expect(WHOLE);
        let (left_out, rest) = rest.split_first_chunk().expect(WHOLE);
        let (pairs, rest) = rest.split_first_chunk().expect(WHOLE);
        let numbers = rest.as_chunks::<8>().0.iter();
        let numbers: Vec<u64> = numbers.map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Told {
            weight: f32::from_le_bytes(*weight),
            left_out: u64::from_le_bytes(*left_out),
            pairs: i32::from_le_bytes(*pairs),
            contents: numbers.as_chunks::<2>().0.to_vec(),
        }
    }
}
