//! Contrastive losses over all ranks' pairs: the loss and every gradient are those of one rank with the whole batch.

use std::sync::Arc;

use keel::ops::{
    Contrastive, ContrastiveMask, RankPairs, contrastive_loss, contrastive_loss_over_ranks,
};
use keel::program::Program;
use keel::ranks::order::BUCKET;
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Random, RankOn, on_ranks};

/// What all ranks compare together.
#[derive(Clone, Debug)]
struct Whole {
    kind: Contrastive,
    ranks: usize,
    /// Rows of a rank.
    share: usize,
    e: usize,
    /// How many rows of each rank are pairs.
    counts: Vec<usize>,
    /// Of all ranks' rows, unit rows.
    sides: [Vec<f64>; 2],
    identities: [Vec<i32>; 2],
    log_scale: f64,
    bias: f64,
}

const COTANGENT: f64 = 0.75;

impl Whole {
    fn new(kind: Contrastive, counts: &[usize], share: usize, e: usize, seed: u64) -> Whole {
        let (ranks, mut random) = (counts.len(), Random::new(seed));
        let mut side = || -> Vec<f64> {
            let values = random.normals(ranks * share * e, 1.0);
            let rows = values.chunks(e).flat_map(|row| {
                let length = row.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                row.iter()
                    .map(move |x| f64::from((f64::from(*x) / length) as f32))
            });
            rows.collect()
        };
        let sides = [side(), side()];
        // One in three rows shares its number with others.
        let mut numbers = || -> Vec<i32> {
            let drawn = random.integers(ranks * share, 9);
            drawn
                .into_iter()
                .map(|number| (number - 5).max(0))
                .collect()
        };
        let identities = [numbers(), numbers()];
        Whole {
            kind,
            ranks,
            share,
            e,
            counts: counts.to_vec(),
            sides,
            identities,
            log_scale: 1.2,
            bias: -1.5,
        }
    }

    /// The rows of all ranks that are pairs.
    fn pairs(&self) -> Vec<usize> {
        let of_rank = |rank: usize| (0..self.counts[rank]).map(move |row| rank * self.share + row);
        (0..self.ranks).flat_map(of_rank).collect()
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        match self.kind {
            Contrastive::InfoNce => vec![("log_scale", self.log_scale)],
            Contrastive::Sigmoid => vec![("log_scale", self.log_scale), ("bias", self.bias)],
        }
    }

    /// The loss of one rank with all pairs, and its gradients of both sides and the scalars, in f64.
    fn alone(&self) -> (f64, [Vec<f64>; 2], Vec<f64>) {
        let rows = self.pairs();
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let ty = TensorType::f32([rows.len(), self.e]);
        let sides = ["image", "text"].map(|name| tape.input_with_gradient(name, ty));
        let scalars: Vec<_> = self
            .scalars()
            .iter()
            .map(|(name, _)| tape.input_with_gradient(*name, TensorType::f32([1])))
            .collect();
        let of_rows = TensorType::i32([rows.len()]);
        let mask = ContrastiveMask {
            pairs: None,
            identities: Some(["images", "texts"].map(|name| tape.input(name, of_rows))),
        };
        let features = [sides[0], sides[1], scalars[0]];
        let loss = contrastive_loss(
            &mut tape,
            features,
            scalars.get(1).copied(),
            mask,
            self.kind,
        );
        let loss = loss.unwrap();
        tape.output(loss, "loss");
        let cotangent = tape.input("cotangent", TensorType::f32([1]));
        tape.backward_from(&[(loss, cotangent)]).unwrap();
        let on = RankOn::Reference;
        let program = Program::compile(tape, &on.options()).unwrap();
        let executor = on.executor(0, &keel::ranks::Seat::default());
        let mut session = executor.load(Arc::new(program)).unwrap();
        for (name, side) in ["image", "text"].iter().zip(&self.sides) {
            let rows = rows
                .iter()
                .flat_map(|row| side[row * self.e..][..self.e].to_vec());
            session
                .write_f64(name, &rows.collect::<Vec<f64>>())
                .unwrap();
        }
        for (name, numbers) in ["images", "texts"].iter().zip(&self.identities) {
            let of_pairs: Vec<i32> = rows.iter().map(|row| numbers[*row]).collect();
            session.write_i32(name, &of_pairs).unwrap();
        }
        for (name, value) in self.scalars() {
            session.write_f64(name, &[value]).unwrap();
        }
        session.write_f64("cotangent", &[COTANGENT]).unwrap();
        session.run().unwrap();
        // Back to where the rows stand among all.
        let whole = |name: &str| {
            let found = session.read_f64(&format!("gradient.{name}")).unwrap();
            let mut all = vec![0.0; self.ranks * self.share * self.e];
            for (row, found) in rows.iter().zip(found.chunks(self.e)) {
                all[row * self.e..][..self.e].copy_from_slice(found);
            }
            all
        };
        let scalars = self.scalars().into_iter();
        let scalars =
            scalars.map(|(name, _)| session.read_f64(&format!("gradient.{name}")).unwrap()[0]);
        let scalars = scalars.collect();
        (
            session.read_f64("loss").unwrap()[0],
            ["image", "text"].map(whole),
            scalars,
        )
    }

    /// The same by all ranks together: parts of the loss and of the scalars' gradients are added.
    fn over_ranks(&self, on: RankOn) -> (f64, [Vec<f64>; 2], Vec<f64>) {
        let parts = on_ranks(self.ranks, |seat| {
            let rank = seat.world().rank;
            let tape = Tape::new(ParameterLayout::default().into(), |_| false);
            let mut tape = tape.over_ranks(seat.world(), BUCKET);
            let ty = TensorType::f32([self.share, self.e]);
            let sides = ["image", "text"].map(|name| tape.input_with_gradient(name, ty));
            let scalars: Vec<_> = self
                .scalars()
                .iter()
                .map(|(name, _)| tape.input_with_gradient(*name, TensorType::f32([1])))
                .collect();
            let of_rows = TensorType::i32([self.ranks * self.share]);
            let pairs = RankPairs {
                counts: tape.input("counts", TensorType::i32([self.ranks + 1])),
                identities: ["images", "texts"].map(|name| tape.input(name, of_rows)),
            };
            let features = [sides[0], sides[1], scalars[0]];
            let bias = scalars.get(1).copied();
            let loss = contrastive_loss_over_ranks(&mut tape, features, bias, pairs, self.kind);
            let loss = loss.unwrap();
            tape.output(loss, "loss");
            let cotangent = tape.input("cotangent", TensorType::f32([1]));
            tape.backward_from(&[(loss, cotangent)]).unwrap();
            let program = Program::compile(tape, &on.options()).unwrap();
            let executor = on.executor(0, &seat);
            let mut session = executor.load(Arc::new(program)).unwrap();
            let own = rank * self.share * self.e..(rank + 1) * self.share * self.e;
            for (name, side) in ["image", "text"].iter().zip(&self.sides) {
                session.write_f64(name, &side[own.clone()]).unwrap();
            }
            for (name, numbers) in ["images", "texts"].iter().zip(&self.identities) {
                session.write_i32(name, numbers).unwrap();
            }
            let mut counts: Vec<i32> = self.counts.iter().map(|count| *count as i32).collect();
            counts.push(counts.iter().sum());
            session.write_i32("counts", &counts).unwrap();
            for (name, value) in self.scalars() {
                session.write_f64(name, &[value]).unwrap();
            }
            session.write_f64("cotangent", &[COTANGENT]).unwrap();
            session.run().unwrap();
            let gradient = |name: &str| session.read_f64(&format!("gradient.{name}")).unwrap();
            let scalars = self
                .scalars()
                .into_iter()
                .map(|(name, _)| gradient(name)[0]);
            let scalars: Vec<f64> = scalars.collect();
            (
                session.read_f64("loss").unwrap()[0],
                ["image", "text"].map(gradient),
                scalars,
            )
        });
        let loss = parts.iter().map(|(loss, ..)| loss).sum();
        let side = |side: usize| {
            parts
                .iter()
                .flat_map(|(_, sides, _)| sides[side].clone())
                .collect()
        };
        let scalars = (0..self.scalars().len())
            .map(|index| parts.iter().map(|(.., scalars)| scalars[index]).sum())
            .collect();
        (loss, [side(0), side(1)], scalars)
    }

    /// Holds what the ranks found to what one rank finds. A value is a sum of N terms, each of an exponential of a score that
    /// sums E products: so many roundings, those of the score enlarged by its size.
    fn check(&self, on: RankOn, epsilon: f64) {
        let what = format!(
            "{:?} on {on:?}, {:?} of {} rows",
            self.kind, self.counts, self.share
        );
        let (loss, sides, scalars) = self.alone();
        let (found_loss, found_sides, found_scalars) = self.over_ranks(on);
        let (n, e) = ((self.ranks * self.share) as f64, self.e as f64);
        let roundings = n + (e + 16.0) * (1.0 + self.log_scale.exp() + self.bias.abs());
        let near = |name: &str, want: &[f64], found: &[f64]| {
            let most = want.iter().fold(1.0 / n, |most, x| x.abs().max(most));
            for (index, (want, found)) in want.iter().zip(found).enumerate() {
                let allowed = roundings * epsilon * most;
                assert!(
                    (want - found).abs() <= allowed,
                    "{what}: {name}[{index}] is {found:e}, not {want:e}"
                );
            }
        };
        near("loss", &[loss], &[found_loss]);
        near("scalars", &scalars, &found_scalars);
        for side in [0, 1] {
            assert_eq!(sides[side].len(), found_sides[side].len());
            near("features", &sides[side], &found_sides[side]);
        }
    }
}

const KINDS: [Contrastive; 2] = [Contrastive::InfoNce, Contrastive::Sigmoid];

#[test]
fn ranks_together_find_the_loss_and_the_gradients_of_one_rank_with_the_whole_batch() {
    for kind in KINDS {
        for (counts, share, e) in [
            (&[6][..], 6, 8),
            (&[5, 3], 5, 7),
            (&[0, 4, 2], 4, 3),
            (&[70, 70], 70, 9),
            (&[33, 40, 1, 40], 40, 6),
        ] {
            let whole = Whole::new(kind, counts, share, e, 5 + share as u64);
            whole.check(RankOn::Reference, f64::EPSILON);
            for on in RankOn::all() {
                if on != RankOn::Reference {
                    whole.check(on, f64::from(f32::EPSILON));
                }
            }
        }
    }
}

#[test]
fn more_rows_than_a_tile_are_compared_whole() {
    for kind in KINDS {
        let whole = Whole::new(kind, &[140, 150], 150, 5, 3);
        for on in RankOn::all().into_iter().skip(1) {
            whole.check(on, f64::from(f32::EPSILON));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_ranks_shapes_and_counts_give_the_whole_batch(
        counts in prop::collection::vec(0usize..6, 1..5),
        e in 1usize..9,
        seed in any::<u64>(),
        is_sigmoid in any::<bool>(),
    ) {
        prop_assume!(counts.iter().any(|count| *count > 0));
        let kind = KINDS[usize::from(is_sigmoid)];
        let whole = Whole::new(kind, &counts, 5, e, seed);
        whole.check(RankOn::Reference, f64::EPSILON);
        whole.check(RankOn::Cpu, f64::from(f32::EPSILON));
    }
}

#[test]
fn gradients_are_central_differences_of_the_sum_of_all_parts() {
    let step = 1e-6;
    for kind in KINDS {
        let whole = Whole::new(kind, &[3, 2, 3], 3, 4, 8);
        let (_, sides, scalars) = whole.over_ranks(RankOn::Reference);
        let difference = |change: &dyn Fn(&mut Whole, f64)| {
            let at = |by: f64| {
                let mut moved = whole.clone();
                change(&mut moved, by);
                moved.over_ranks(RankOn::Reference).0
            };
            COTANGENT * (at(step) - at(-step)) / (2.0 * step)
        };
        // An element of each rank and side, of a row that is a pair.
        for rank in 0..3 {
            for side in [0, 1] {
                let element = (rank * 3 + 1) * 4 + side;
                let found = difference(&|whole, by| whole.sides[side][element] += by);
                assert!(
                    (found - sides[side][element]).abs() < 1e-8,
                    "{kind:?}, rank {rank}, side {side}"
                );
            }
        }
        let found = difference(&|whole, by| whole.log_scale += by);
        assert!((found - scalars[0]).abs() < 1e-8, "{kind:?}: log_scale");
        if kind == Contrastive::Sigmoid {
            let found = difference(&|whole, by| whole.bias += by);
            assert!((found - scalars[1]).abs() < 1e-8, "{kind:?}: bias");
        }
    }
}

#[test]
fn a_batch_without_pairs_has_no_loss_and_no_gradients() {
    for kind in KINDS {
        let mut whole = Whole::new(kind, &[1, 1], 4, 3, 2);
        whole.counts = vec![0, 0];
        for on in RankOn::all() {
            let (loss, sides, scalars) = whole.over_ranks(on);
            assert_eq!(loss, 0.0, "{kind:?} on {on:?}");
            assert!(
                sides.iter().flatten().chain(&scalars).all(|x| *x == 0.0),
                "{kind:?} on {on:?}"
            );
        }
    }
}
