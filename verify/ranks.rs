//! Ranks: what they own, the order of their sums, and threads as ranks.

use keel::ranks::order::{ATOM, Cut, blocks_are_subtrees, tree_sum};
use keel::ranks::{Collective, Kind, Received, Sent};
use proptest::prelude::*;

use crate::harness::{Random, on_ranks};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn slices_tile_every_range_once(elements in 0usize..40 * ATOM, ranks in 1usize..9, bucket in 1usize..30 * ATOM) {
        let cut = Cut::new(elements, ranks, bucket);
        let mut next = 0;
        for bucket in 0..cut.buckets() {
            prop_assert_eq!(cut.bucket(bucket).start, next);
            for rank in 0..ranks {
                let slice = cut.slice_of(bucket, rank);
                prop_assert_eq!(slice.start, next);
                prop_assert_eq!(slice.len() % ATOM, 0, "slices are whole atoms");
                next = slice.end;
            }
            prop_assert_eq!(cut.bucket(bucket).end, next);
        }
        prop_assert_eq!(next, cut.padded());
        prop_assert!(next >= elements);
        prop_assert!(next - elements < ATOM * ranks * cut.buckets().max(1), "padding stays below an atom a slice");
        prop_assert_eq!(cut.owned() * ranks, cut.padded());
    }

    #[test]
    fn subtrees_of_equal_ranks_add_to_the_whole_tree(parts in prop::collection::vec(-1e6f32..1e6, 64)) {
        let whole = tree_sum(parts.iter().copied()).unwrap();
        for ranks in [1, 2, 4, 8, 16, 32, 64] {
            let of_rank = |part: &[f32]| tree_sum(part.iter().copied()).unwrap();
            let sums = parts.chunks(64 / ranks).map(of_rank);
            prop_assert_eq!(tree_sum(sums).unwrap().to_bits(), whole.to_bits());
        }
    }

    #[test]
    fn blocks_that_are_subtrees_add_to_the_whole_tree(blocks in 1usize..20, each in 1usize..20, seed: u64) {
        let parts = Random::new(seed).normals(blocks * each, 1e6);
        let of_block = |part: &[f32]| tree_sum(part.iter().copied()).unwrap();
        let sums = parts.chunks(each).map(of_block);
        if blocks_are_subtrees(blocks, each) {
            prop_assert_eq!(tree_sum(sums).unwrap().to_bits(), of_block(&parts).to_bits());
        }
    }

    #[test]
    fn a_tree_of_any_size_pairs_neighbours(parts in prop::collection::vec(-1e6f32..1e6, 1..40)) {
        let mut level = parts.clone();
        while level.len() > 1 {
            level = level.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
        }
        prop_assert_eq!(tree_sum(parts).unwrap().to_bits(), level[0].to_bits());
    }
}

#[test]
fn nothing_adds_to_nothing() {
    assert_eq!(tree_sum(std::iter::empty::<f32>()), None);
}

#[test]
fn threads_exchange_and_gather_in_the_order_of_ranks() {
    for ranks in 1..=5usize {
        let received = on_ranks(ranks, |seat| {
            let rank = seat.world().rank as u8;
            let mut engine = seat.engine().unwrap().lock().unwrap();
            let exchange = Collective {
                kind: Kind::Exchange,
                slice: 3,
            };
            let gather = Collective {
                kind: Kind::AllGather,
                slice: 2,
            };
            let sent: Vec<u8> = (0..3 * ranks as u8).map(|byte| 40 * rank + byte).collect();
            // Both are under way before either is finished, and they are finished the other way round.
            let first = engine.begin(exchange, Sent::Host(&sent)).unwrap();
            let second = engine
                .begin(gather, Sent::Host(&[rank, rank + 100]))
                .unwrap();
            let (mut exchanged, mut gathered) = (vec![0; 3 * ranks], vec![0; 2 * ranks]);
            engine
                .finish(second, Received::Host(&mut gathered))
                .unwrap();
            engine
                .finish(first, Received::Host(&mut exchanged))
                .unwrap();
            (exchanged, gathered)
        });
        for (rank, (exchanged, gathered)) in received.into_iter().enumerate() {
            for from in 0..ranks {
                let mine: Vec<u8> = (0..3)
                    .map(|byte| (40 * from + 3 * rank + byte) as u8)
                    .collect();
                assert_eq!(exchanged[3 * from..][..3], mine[..], "{ranks} ranks");
                assert_eq!(gathered[2 * from..][..2], [from as u8, from as u8 + 100]);
            }
        }
    }
}

#[test]
fn a_rank_that_ends_ends_those_that_wait_for_it() {
    let outcomes = on_ranks(3, |seat| {
        if seat.world().rank == 1 {
            seat.votes().give_up("its disk is full");
            return String::new();
        }
        let mut engine = seat.engine().unwrap().lock().unwrap();
        let gather = Collective {
            kind: Kind::AllGather,
            slice: 1,
        };
        let ticket = match engine.begin(gather, Sent::Host(&[1])) {
            Ok(ticket) => ticket,
            Err(problem) => return problem.to_string(),
        };
        let ended = engine.finish(ticket, Received::Host(&mut [0; 3]));
        ended.unwrap_err().to_string()
    });
    for rank in [0, 2] {
        let sentence = &outcomes[rank];
        assert!(
            sentence.starts_with("rank 1: it is gone: its disk is full"),
            "{sentence}"
        );
    }
}

#[test]
fn ranks_that_come_to_different_collectives_are_told_apart() {
    let outcomes = on_ranks(2, |seat| {
        let slice = 1 + seat.world().rank;
        let mut engine = seat.engine().unwrap().lock().unwrap();
        let gather = Collective {
            kind: Kind::AllGather,
            slice,
        };
        let sent = vec![0; slice];
        let begun = engine.begin(gather, Sent::Host(&sent));
        let ended =
            begun.and_then(|ticket| engine.finish(ticket, Received::Host(&mut vec![0; 2 * slice])));
        ended.unwrap_err().to_string()
    });
    for sentence in outcomes {
        assert!(
            sentence.contains("AllGather") && sentence.contains("where rank"),
            "{sentence}"
        );
    }
}

#[test]
fn votes_of_any_length_reach_all_ranks() {
    let heard = on_ranks(3, |seat| {
        let own = vec![7u8; seat.world().rank];
        let votes = seat.votes();
        let first = votes.gather("lengths", &own).unwrap();
        let second = votes.gather("nothing", &[]).unwrap();
        (first, second)
    });
    for (first, second) in heard {
        assert_eq!(first, [vec![], vec![7], vec![7, 7]]);
        assert_eq!(second, vec![Vec::<u8>::new(); 3]);
    }
}
