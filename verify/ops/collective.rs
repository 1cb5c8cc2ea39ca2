//! Collectives on the tape: what arrives where, and gradients across ranks, on threads as ranks.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::{Executor, ReferenceExecutor, Session};
use keel::ops::{all_gather, exchange};
use keel::program::Program;
use keel::ranks::order::BUCKET;
use keel::ranks::{Seat, World};
use keel::tape::{ParameterLayout, Tape, Target, Value};
use keel::tensor::TensorType;

use crate::harness::{Random, RankOn, on_ranks};

type Record = fn(&mut Tape, Value) -> Result<Value>;

const BOTH: [(&str, Record); 2] = [("all_gather", all_gather), ("exchange", exchange)];

/// y = the collective of x f32 [ranks·rows, 3], with the gradient of x for the cotangent `dy`.
fn load(
    on: RankOn,
    seat: &Seat,
    record: Record,
    rows: usize,
) -> (Box<dyn Executor>, Box<dyn Session>) {
    let world = seat.world();
    let tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let mut tape = tape.over_ranks(world, BUCKET);
    let x = tape.input_with_gradient("x", TensorType::f32([world.ranks * rows, 3]));
    let y = record(&mut tape, x).unwrap();
    tape.output(y, "y");
    let ty = tape.ty(y);
    let dy = tape.input("dy", ty);
    tape.backward_from(&[(y, dy)]).unwrap();
    let program = Program::compile(tape, &on.options()).unwrap();
    let executor = on.executor(0, seat);
    let session = executor.load(Arc::new(program)).unwrap();
    (executor, session)
}

/// Small whole numbers, which every executor adds exactly in any order.
fn whole(count: usize, seed: u64) -> Vec<f32> {
    let numbers = Random::new(seed).integers(count, 2000);
    numbers.into_iter().map(|x| x as f32 - 1000.0).collect()
}

#[test]
fn every_executor_receives_what_the_others_sent_and_sums_their_gradients() {
    for on in RankOn::all() {
        for (name, record) in BOTH {
            for (ranks, rows) in [(1, 2), (2, 1), (3, 5), (5, 2)] {
                let elements = ranks * rows * 3;
                let x = |rank: usize| whole(elements, rank as u64);
                let gathered = if name == "all_gather" {
                    ranks * elements
                } else {
                    elements
                };
                let dy = |rank: usize| whole(gathered, 100 + rank as u64);
                let results = on_ranks(ranks, |seat| {
                    let rank = seat.world().rank;
                    let (_executor, mut session) = load(on, &seat, record, rows);
                    session.write_f32("x", &x(rank)).unwrap();
                    let length = if ranks == 1 { elements } else { gathered };
                    session.write_f32("dy", &dy(rank)[..length]).unwrap();
                    session.run().unwrap();
                    [
                        session.read_f32("y").unwrap(),
                        session.read_f32("gradient.x").unwrap(),
                    ]
                });
                let slice = elements / ranks;
                for (rank, [y, dx]) in results.into_iter().enumerate() {
                    let what = format!("{name} on {on:?}, rank {rank} of {ranks}");
                    let (want_y, want_dx): (Vec<f32>, Vec<f32>) = match name {
                        "all_gather" => (
                            (0..ranks).flat_map(x).collect(),
                            (0..elements)
                                .map(|i| (0..ranks).map(|from| dy(from)[rank * elements + i]).sum())
                                .collect(),
                        ),
                        _ => (
                            (0..ranks)
                                .flat_map(|from| x(from)[rank * slice..][..slice].to_vec())
                                .collect(),
                            (0..ranks)
                                .flat_map(|from| dy(from)[rank * slice..][..slice].to_vec())
                                .collect(),
                        ),
                    };
                    assert_eq!(y, want_y, "{what}");
                    assert_eq!(dx, want_dx, "{what}");
                }
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_sum_of_all_ranks_losses() {
    // L = Σ over ranks of ⟨dy, y³⟩ by central differences: one element of one rank is moved, and all ranks are read.
    let (ranks, rows, step) = (3, 2, 1e-5);
    for (name, record) in BOTH {
        let elements = ranks * rows * 3;
        let length = if name == "all_gather" {
            ranks * elements
        } else {
            elements
        };
        let x = |rank: usize| {
            whole(elements, 7 + rank as u64)
                .iter()
                .map(|x| f64::from(*x) / 1000.0)
                .collect::<Vec<f64>>()
        };
        let dy = |rank: usize| {
            whole(length, 9 + rank as u64)
                .iter()
                .map(|x| f64::from(*x) / 1000.0)
                .collect::<Vec<f64>>()
        };
        let results = on_ranks(ranks, |seat| {
            let rank = seat.world().rank;
            let (_executor, mut session) = load(RankOn::Reference, &seat, record, rows);
            let mut losses = Vec::new();
            // Each rank's third element in turn, down and up; then as it is.
            for (moved, by) in (0..ranks).flat_map(|rank| [(rank, -step), (rank, step)]) {
                let mut x = x(rank);
                if moved == rank {
                    x[3] += by;
                }
                session.write_f64("x", &x).unwrap();
                session.write_f64("dy", &vec![0.0; length]).unwrap();
                session.run().unwrap();
                let y = session.read_f64("y").unwrap();
                losses.push(
                    dy(rank)
                        .iter()
                        .zip(y)
                        .map(|(dy, y)| dy * y.powi(3))
                        .sum::<f64>(),
                );
            }
            session.write_f64("x", &x(rank)).unwrap();
            session.run().unwrap();
            let y = session.read_f64("y").unwrap();
            let seed: Vec<f64> = dy(rank)
                .iter()
                .zip(y)
                .map(|(dy, y)| 3.0 * dy * y * y)
                .collect();
            session.write_f64("dy", &seed).unwrap();
            session.run().unwrap();
            (losses, session.read_f64("gradient.x").unwrap()[3])
        });
        for (rank, (_, gradient)) in results.iter().enumerate() {
            let at = |index: usize| {
                results
                    .iter()
                    .map(|(losses, _)| losses[2 * rank + index])
                    .sum::<f64>()
            };
            let difference = (at(1) - at(0)) / (2.0 * step);
            // The third derivative is at most 6 Σ |dy|: the error of a central difference is a sixth of it times h².
            let allowed = 20.0 * step * step * length as f64 + 1e-9;
            assert!(
                (difference - gradient).abs() < allowed,
                "{name}, rank {rank}: {difference} and {gradient}"
            );
        }
    }
}

#[test]
fn a_program_of_several_ranks_is_refused_without_their_engine() {
    let tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let mut tape = tape.over_ranks(World::of_one_host(1, 4), BUCKET);
    let x = tape.input("x", TensorType::f32([4]));
    let y = all_gather(&mut tape, x).unwrap();
    tape.output(y, "y");
    let program = Program::compile(tape, &RankOn::Reference.options()).unwrap();
    assert_eq!(program.compile_target().target, Target::Reference);
    let refused = ReferenceExecutor::new(0).load(Arc::new(program));
    let problem = refused.err().unwrap().to_string();
    assert!(problem.contains("rank 1 of 4"), "{problem}");
}

#[test]
fn rows_that_are_no_multiple_of_the_ranks_cannot_be_exchanged() {
    let tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let mut tape = tape.over_ranks(World::of_one_host(0, 4), BUCKET);
    let x = tape.input("x", TensorType::f32([6]));
    let problem = exchange(&mut tape, x).unwrap_err().to_string();
    assert_eq!(
        problem,
        "exchange_begin: x must be with a multiple of 4 rows, a slice a rank, but is f32 [6]"
    );
}
