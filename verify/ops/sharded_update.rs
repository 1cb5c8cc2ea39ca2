//! The update over ranks: gradients in tree order, moments in shards, parameters the same everywhere.

use std::sync::Arc;

use keel::executor::{Executor, Session};
use keel::ops::{
    EMA_STATE, MASTER_STATE, MICRO_BATCH_INDEX, OPTIMIZER_SCALARS, OptimizerInput, ParameterGroups,
    UpdateOptions, record_update,
};
use keel::program::Program;
use keel::ranks::Seat;
use keel::ranks::order::{ATOM, Cut, tree_sum};
use keel::tape::{Arena, Init, ParameterLayout, ParameterSpec, Tape};
use keel::tensor::{DType, TensorType};

use crate::harness::{Random, RankOn, on_ranks};

/// Parameters of several modules, more than six atoms in all, some that end inside one.
const SIZES: [(&str, usize); 4] = [
    ("a.matrix", 5 * ATOM + 700),
    ("a.scale", 1),
    ("b.matrix", ATOM + 12),
    ("b.vector", 33),
];

/// β₁, β₂, ε, largest norm, both corrections, 1 − β₁, 1 − β₂, t, gradient scale.
const SHARED: [f32; OPTIMIZER_SCALARS] = [0.9, 0.999, 1e-8, 1.0, 0.1, 0.001, 0.1, 0.001, 1.0, 0.25];

struct Rank {
    layout: Arc<ParameterLayout>,
    executor: Box<dyn Executor>,
    session: Box<dyn Session>,
}

/// What is special about an update.
#[derive(Clone, Copy)]
struct How {
    on: RankOn,
    precision: DType,
    /// Elements of a bucket.
    bucket: usize,
    accumulates: bool,
    zero_stage: usize,
    rounding: Option<u64>,
    /// Micro-batches of a rank, where their gradients are added in a tree.
    tree: Option<usize>,
    /// Matrices that are some, with first values and averages: whether their f32 values are in shards.
    masters: Option<bool>,
}

impl How {
    fn new(on: RankOn, bucket: usize) -> How {
        How {
            on,
            precision: DType::F32,
            bucket,
            accumulates: false,
            zero_stage: 1,
            rounding: None,
            tree: None,
            masters: None,
        }
    }
}

impl Rank {
    /// A program whose gradients are its inputs.
    fn load(how: How, seat: &Seat) -> Rank {
        let How { on, precision, .. } = how;
        let specs = SIZES.map(|(name, size)| ParameterSpec {
            name: name.into(),
            shape: match name.ends_with("matrix") && how.masters.is_some() {
                true => [4, size / 4].into(),
                false => [size].into(),
            },
            init: Init::Constant(0.0),
            decays: name.ends_with("matrix"),
        });
        let layout = Arc::new(ParameterLayout::new(&specs));
        let tape = Tape::new(layout.clone(), |_| true).in_precision(precision);
        let mut tape = tape.over_ranks(seat.world(), how.bucket);
        if how.accumulates {
            tape = tape.accumulating_gradients();
        }
        if let Some(count) = how.tree {
            tape = tape.adding_in_tree(count);
        }
        if how.zero_stage == 2 {
            tape = tape.sharding_gradients();
        }
        let mut seeds = Vec::new();
        for spec in specs {
            let (name, ty) = (format!("g.{}", spec.name), TensorType::f32(spec.shape));
            let parameter = tape.parameter(spec).unwrap();
            seeds.push((parameter, tape.input(name, ty)));
        }
        tape.backward_from(&seeds).unwrap();
        let options = UpdateOptions {
            clamps: vec![("a.scale", -0.01, 0.01)],
            random_rounding: how.rounding,
            ema_decay: how.masters.map(|_| 0.5),
            shards_masters: how.masters.unwrap_or_default(),
        };
        record_update(
            &mut tape,
            &layout,
            &ParameterGroups::decaying(0.1),
            &options,
        )
        .unwrap();
        let program = Program::compile(tape, &on.options()).unwrap();
        let executor = on.executor(layout.elements(), seat);
        // What is kept free between parameters holds zeros.
        let mut first = vec![0.0; layout.elements()];
        for entry in layout.entries() {
            let own = &mut first[entry.offset..][..entry.spec.shape.numel()];
            own.copy_from_slice(&Random::new(entry.offset as u64).normals(own.len(), 1.0));
        }
        if how.masters.is_some() {
            executor.write_parameters(0, &first).unwrap();
            executor.hold_in_bf16(program.masters_in_shards()).unwrap();
        }
        let mut session = executor.load(Arc::new(program)).unwrap();
        let state = session.program().optimizer_state().to_vec();
        for state in state.iter().filter(|state| state.name == MASTER_STATE) {
            // Everything is trained: both arenas are laid out alike.
            let pieces = session.program().state_pieces(state).into_iter();
            let own: Vec<f32> = pieces
                .flat_map(|piece| first[piece.gradients].to_vec())
                .collect();
            session.write_arena(state.arena, &own).unwrap();
        }
        let mut rank = Rank {
            layout,
            executor,
            session,
        };
        rank.session
            .write_f32(OptimizerInput::Scalars.name(), &SHARED)
            .unwrap();
        rank.session
            .write_f32(OptimizerInput::GroupScalars.name(), &[0.1, 0.1, 0.1, 0.0])
            .unwrap();
        rank
    }

    fn write_gradients(&mut self, of: impl Fn(usize) -> Vec<f32>) {
        for (index, (name, _)) in SIZES.iter().enumerate() {
            self.session
                .write_f32(&format!("g.{name}"), &of(index))
                .unwrap();
        }
    }

    fn parameters(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.layout.elements()];
        self.executor.read_parameters(0, &mut values).unwrap();
        values
    }
}

/// The gradient of parameter `index` on `rank` in `step`. On the reference they are small whole numbers, whose sums are the same
/// in f32 and f64.
fn gradient(on: RankOn, index: usize, rank: usize, step: usize) -> Vec<f32> {
    let mut random = Random::new((index + 10 * rank + 1000 * step) as u64);
    let elements = SIZES[index].1;
    match on {
        RankOn::Reference => random
            .integers(elements, 9)
            .into_iter()
            .map(|x| x as f32 - 4.0)
            .collect(),
        _ => random.normals(elements, 1.0),
    }
}

/// The same summed over ranks, in the order of the tree.
fn summed(on: RankOn, index: usize, ranks: usize, step: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = (0..ranks)
        .map(|rank| gradient(on, index, rank, step))
        .collect();
    (0..SIZES[index].1)
        .map(|i| tree_sum(parts.iter().map(|part| part[i])).unwrap())
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn ranks_update_as_one_rank_does_with_the_sum_of_their_gradients_bit_for_bit() {
    for on in [RankOn::Cpu, RankOn::Reference] {
        for (ranks, bucket) in [(2, usize::MAX), (2, 2 * ATOM), (3, ATOM), (4, usize::MAX)] {
            let mut alone = Rank::load(How::new(on, bucket), &Seat::default());
            let mut norms = Vec::new();
            for step in 0..2 {
                alone.write_gradients(|index| summed(on, index, ranks, step));
                alone.session.run().unwrap();
                norms.push(alone.session.read_f32("gradient_norm").unwrap());
            }
            let of_stage = |zero_stage| {
                on_ranks(ranks, |seat| {
                    let mut rank = Rank::load(
                        How {
                            zero_stage,
                            ..How::new(on, bucket)
                        },
                        &seat,
                    );
                    let mut norms = Vec::new();
                    for step in 0..2 {
                        rank.write_gradients(|index| gradient(on, index, seat.world().rank, step));
                        rank.session.run().unwrap();
                        norms.push(rank.session.read_f32("gradient_norm").unwrap());
                    }
                    (rank.parameters(), norms)
                })
            };
            let want = alone.parameters();
            assert!(want.iter().any(|x| *x != 0.0));
            let of_ranks = [1, 2].into_iter().flat_map(of_stage);
            for (rank, (parameters, of_rank)) in of_ranks.enumerate() {
                let (zero_stage, rank) = (1 + rank / ranks, rank % ranks);
                let what = format!(
                    "{on:?}, stage {zero_stage}, rank {rank} of {ranks}, buckets of {bucket}"
                );
                if on == RankOn::Cpu {
                    assert_eq!(bits(&parameters), bits(&want), "{what}");
                    assert_eq!(of_rank, norms, "{what}");
                    continue;
                }
                // The reference adds in f64, where the tree was added in f32 before.
                for (want, got) in want.iter().zip(parameters) {
                    assert!(
                        (want - got).abs() <= 4.0 * f32::EPSILON * want.abs().max(0.1),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_kernels_update_over_ranks_as_the_processor_does() {
    if !RankOn::all().contains(&RankOn::Simt) {
        return;
    }
    for (precision, zero_stage) in [(DType::F32, 1), (DType::Bf16, 1), (DType::Bf16, 2)] {
        let of = |on: RankOn, precision| {
            on_ranks(2, |seat| {
                let mut rank = Rank::load(
                    How {
                        precision,
                        zero_stage,
                        ..How::new(on, 2 * ATOM)
                    },
                    &seat,
                );
                rank.write_gradients(|index| gradient(on, index, seat.world().rank, 0));
                rank.session.run().unwrap();
                let copies = (precision == DType::Bf16)
                    .then(|| rank.session.read_arena(Arena::ParametersBf16).unwrap());
                (rank.parameters(), copies)
            })
        };
        let (want, got) = (of(RankOn::Cpu, DType::F32), of(RankOn::Simt, precision));
        for ((want, _), (got, copies)) in want.iter().zip(&got) {
            for (want, got) in want.iter().zip(got) {
                assert!((want - got).abs() <= 4.0 * f32::EPSILON * want.abs().max(0.1));
            }
            if let Some(copies) = copies {
                // A clamp changes the parameter and not its copy, which nothing reads of a scalar.
                let clamped = 5 * ATOM + 704;
                for (index, (got, copy)) in got.iter().zip(copies).enumerate() {
                    assert!(index == clamped || half::bf16::from_f32(*got).to_f32() == *copy);
                }
            }
        }
        assert_eq!(
            bits(&got[0].0),
            bits(&got[1].0),
            "both ranks hold the same parameters"
        );
    }
}

#[test]
fn several_micro_batches_add_up_and_leave_nothing_behind() {
    // Small whole numbers: their sums are exact in any order.
    let draw = |index: usize, seed: usize| -> Vec<f32> {
        (0..SIZES[index].1)
            .map(|i| ((i * 31 + seed * 7 + index) % 23) as f32 - 11.0)
            .collect()
    };
    let all = RankOn::all().into_iter();
    for (on, zero_stage) in all.flat_map(|on| [(on, 1), (on, 2)]) {
        let of_ranks = on_ranks(2, |seat| {
            let mut rank = Rank::load(
                How {
                    accumulates: true,
                    zero_stage,
                    ..How::new(on, ATOM)
                },
                &seat,
            );
            for step in 0..2 {
                for micro in 0..2 {
                    let seed = 4 * step + 2 * seat.world().rank + micro;
                    rank.write_gradients(|index| draw(index, seed));
                    match micro {
                        0 => rank.session.run_gradients().unwrap(),
                        _ => rank.session.run().unwrap(),
                    }
                }
                let arena = [Arena::Gradients, Arena::GradientShard][zero_stage - 1];
                let left = rank.session.read_arena(arena).unwrap();
                assert!(left.iter().all(|x| *x == 0.0), "{on:?}, stage {zero_stage}");
            }
            rank.parameters()
        });
        let mut alone = Rank::load(
            How {
                accumulates: true,
                ..How::new(on, ATOM)
            },
            &Seat::default(),
        );
        for step in 0..2 {
            for micro in 0..4 {
                alone.write_gradients(|index| draw(index, 4 * step + micro));
                match micro {
                    3 => alone.session.run().unwrap(),
                    _ => alone.session.run_gradients().unwrap(),
                }
            }
        }
        let want = alone.parameters();
        for got in of_ranks {
            for (want, got) in want.iter().zip(&got) {
                // The emulator's two norms are added in different orders.
                assert!(
                    (want - got).abs() <= 4.0 * f32::EPSILON * want.abs().max(0.1),
                    "{on:?}"
                );
            }
        }
    }
}

/// Parameters and norms of two steps of four micro-batches that are added in a tree, on the ranks that there are.
fn in_tree(on: RankOn, [ranks, zero_stage]: [usize; 2], precision: DType) -> Vec<(Vec<u32>, u32)> {
    const MICRO_BATCHES: usize = 4;
    let each = MICRO_BATCHES / ranks;
    let of_rank = |seat: Seat| {
        let rank = seat.world().rank;
        let how = How {
            zero_stage,
            precision,
            tree: Some(each),
            ..How::new(on, 2 * ATOM)
        };
        let mut loaded = Rank::load(how, &seat);
        for step in 0..2 {
            for own in 0..each {
                let number = match zero_stage {
                    1 => rank * each + own,
                    _ => own * ranks + rank,
                };
                loaded.write_gradients(|index| gradient(on, index, number, step));
                if each > 1 {
                    let index = [own as i32];
                    loaded.session.write_i32(MICRO_BATCH_INDEX, &index).unwrap();
                }
                match own + 1 == each {
                    true => loaded.session.run().unwrap(),
                    false => loaded.session.run_gradients().unwrap(),
                }
            }
        }
        let norm = loaded.session.read_f32("gradient_norm").unwrap()[0];
        (bits(&loaded.parameters()), norm.to_bits())
    };
    match ranks {
        1 => vec![of_rank(Seat::default())],
        _ => on_ranks(ranks, of_rank),
    }
}

#[test]
fn micro_batches_in_a_tree_leave_the_bits_of_one_rank_on_every_executor() {
    for on in RankOn::all() {
        let precision = match on {
            RankOn::Simt => DType::Bf16,
            _ => DType::F32,
        };
        let want = &in_tree(on, [1, 1], precision)[0];
        assert!(want.0.iter().any(|bits| *bits != 0));
        for [ranks, zero_stage] in [[2, 1], [4, 1], [2, 2], [4, 2]] {
            for (rank, got) in in_tree(on, [ranks, zero_stage], precision)
                .iter()
                .enumerate()
            {
                let what = format!("{on:?}, stage {zero_stage}, rank {rank} of {ranks}");
                assert!(got == want, "{what}: other bits");
            }
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any() {
    let all = RankOn::all().into_iter();
    for (on, zero_stage) in all.flat_map(|on| [(on, 1), (on, 2)]) {
        let outcomes = on_ranks(3, |seat| {
            let mut rank = Rank::load(
                How {
                    zero_stage,
                    ..How::new(on, usize::MAX)
                },
                &seat,
            );
            rank.executor.write_parameters(0, &[0.5; 8]).unwrap();
            let before = rank.parameters();
            rank.write_gradients(|index| {
                let mut values = gradient(on, index, seat.world().rank, 0);
                if (index, seat.world().rank) == (2, 1) {
                    values[5] = f32::NAN;
                }
                values
            });
            rank.session.run().unwrap();
            let norm = rank.session.read_f64("gradient_norm").unwrap()[0];
            (norm, before == rank.parameters())
        });
        for (norm, is_same) in outcomes {
            assert!(norm.is_nan() && is_same, "{on:?}");
        }
    }
}

#[test]
fn a_bucket_is_sent_as_soon_as_its_last_gradient_is_complete() {
    for zero_stage in [1, 2] {
        on_ranks(2, |seat| {
            let rank = Rank::load(
                How {
                    zero_stage,
                    ..How::new(RankOn::Cpu, ATOM)
                },
                &seat,
            );
            let program = rank.session.program();
            let names = program.ops().iter().map(|op| op.instruction.op.name());
            let names: Vec<&str> = names.collect();
            let place = |name| names.iter().position(|known| *known == name).unwrap();
            // Gradients are copies of inputs here, and the update begins behind the last of them.
            let norm = place("atom_squares");
            let copy = ["copy", "slice"][zero_stage - 1];
            let last_gradient = names[..norm].iter().rposition(|name| *name == copy);
            assert!(
                place("exchange_begin") < last_gradient.unwrap(),
                "{names:?}"
            );
            // And no more of them are under way than have memory.
            let mut under_way = 0;
            for name in &names[..norm] {
                under_way +=
                    i32::from(*name == "exchange_begin") - i32::from(*name == "exchange_finish");
                assert!((0..=3).contains(&under_way), "{names:?}");
            }
            let kept = program.arena_elements(Arena::Gradients, 0);
            let cut = program.shards().unwrap();
            let want = match zero_stage {
                1 => cut.padded(),
                // Those that are under way, and the one that is filled.
                _ => 3 * cut.bucket(0).len(),
            };
            assert!(
                cut.buckets() > 3 && kept == want,
                "{kept} in stage {zero_stage}"
            );
        });
    }
}

#[test]
fn each_rank_keeps_the_moments_of_its_own_slices_alone() {
    let elements = on_ranks(4, |seat| {
        let rank = Rank::load(How::new(RankOn::Cpu, usize::MAX), &seat);
        let program = rank.session.program();
        let state = program.optimizer_state()[0].arena;
        (program.arena_elements(state, 0), *program.shards().unwrap())
    });
    let whole: usize = SIZES
        .iter()
        .map(|(_, size)| size.next_multiple_of(16))
        .sum();
    for (kept, cut) in elements {
        assert_eq!(kept, cut.owned());
        assert_eq!(cut, Cut::new(whole, 4, usize::MAX));
    }
}

#[test]
fn stochastic_rounding_over_ranks_is_that_of_one_rank_bit_for_bit() {
    let how = |on, zero_stage| How {
        precision: DType::Bf16,
        zero_stage,
        rounding: Some(5),
        ..How::new(on, ATOM)
    };
    let copies = |rank: &Rank| bits(&rank.session.read_arena(Arena::ParametersBf16).unwrap());
    for (ranks, zero_stage) in [(2, 1), (3, 1), (2, 2)] {
        let trained = |on| {
            on_ranks(ranks, |seat| {
                let mut rank = Rank::load(how(on, zero_stage), &seat);
                for step in 0..2 {
                    rank.write_gradients(|index| gradient(on, index, seat.world().rank, step));
                    rank.session.run().unwrap();
                }
                (bits(&rank.parameters()), copies(&rank))
            })
        };
        let mut alone = Rank::load(how(RankOn::Cpu, 1), &Seat::default());
        for step in 0..2 {
            alone.write_gradients(|index| summed(RankOn::Cpu, index, ranks, step));
            alone.session.run().unwrap();
        }
        let want = (bits(&alone.parameters()), copies(&alone));
        for got in trained(RankOn::Cpu) {
            assert!(got == want, "{ranks} ranks, stage {zero_stage}: other bits");
        }
        if RankOn::all().contains(&RankOn::Simt) {
            let of_ranks = trained(RankOn::Simt);
            let is_same = of_ranks.iter().all(|rank| *rank == of_ranks[0]);
            assert!(is_same, "{ranks} ranks, stage {zero_stage}: copies differ");
            // The norm's last bits may be others there: draws are the same, and so are all copies but those on an edge.
            let pairs = of_ranks[0].1.iter().zip(&want.1);
            let differ = pairs.filter(|(one, other)| one != other).count();
            assert!(differ < want.1.len() / 1000, "{differ} copies");
        }
    }
}

/// What a rank ends with.
struct Ended {
    parameters: Vec<u32>,
    copies: Vec<u32>,
    averages: Vec<u32>,
    /// f32 values in shards, by place among all parameters.
    masters: Vec<(usize, u32)>,
    /// Elements that are held in f32 by all.
    held: usize,
}

/// Holds bits to each other, and names the first that differ.
fn assert_same(what: &str, of: &str, one: &[u32], other: &[u32]) {
    assert_eq!(one.len(), other.len(), "{what}: {of}");
    let differs = one.iter().zip(other).position(|(one, other)| one != other);
    if let Some(at) = differs {
        let [one, other] = [one, other].map(|bits| f32::from_bits(bits[at]));
        panic!("{what}: {of} differ from element {at} on: {one} {other}");
    }
}

fn ended(how: How, ranks: usize) -> Vec<Ended> {
    on_ranks(ranks, |seat| {
        let mut rank = Rank::load(how, &seat);
        for step in 0..2 {
            rank.write_gradients(|index| gradient(how.on, index, seat.world().rank, step));
            rank.session.run().unwrap();
        }
        let (program, session) = (rank.session.program(), &rank.session);
        let state = |name: &str| {
            let mut state = program.optimizer_state().iter();
            state.find(|state| state.name == name)
        };
        let read = |arena| bits(&session.read_arena(arena).unwrap());
        let masters = state(MASTER_STATE).map(|state| {
            let values = read(state.arena);
            let pieces = program.state_pieces(state).into_iter();
            let placed = pieces.flat_map(|piece| {
                let values = values[piece.at..piece.end()].to_vec();
                piece.gradients.zip(values)
            });
            placed.collect()
        });
        let again = rank
            .executor
            .hold_in_bf16(&[])
            .map_err(|problem| problem.to_string());
        match again {
            Ok(()) => assert_eq!(how.masters, Some(false)),
            Err(problem) => assert!(problem.contains("no loaded session"), "{problem}"),
        }
        Ended {
            parameters: bits(&rank.parameters()),
            copies: read(Arena::ParametersBf16),
            averages: read(state(EMA_STATE).unwrap().arena),
            masters: masters.unwrap_or_default(),
            held: program.arena_elements(Arena::Parameters, rank.layout.elements()),
        }
    })
}

#[test]
fn f32_values_in_shards_leave_the_bits_of_whole_ones() {
    // With the places that are kept free behind them.
    let vectors = [(5 * ATOM + 704, 16), (6 * ATOM + 736, 48)];
    let is_vector = |element: usize| {
        let mut vectors = vectors.iter();
        vectors.any(|(first, size)| (*first..first + size).contains(&element))
    };
    for on in RankOn::all() {
        for (ranks, bucket, zero_stage, rounding) in [
            (2, 2 * ATOM, 1, None),
            (3, ATOM, 2, None),
            (4, usize::MAX, 1, Some(5)),
            (2, ATOM, 2, Some(5)),
        ] {
            if on == RankOn::Simt && ranks > 2 {
                continue;
            }
            let of = |in_shards| {
                let how = How {
                    precision: DType::Bf16,
                    zero_stage,
                    rounding,
                    masters: Some(in_shards),
                    ..How::new(on, bucket)
                };
                ended(how, ranks)
            };
            let (whole, shards) = (of(false), of(true));
            let what = format!("{on:?}, {ranks} ranks, stage {zero_stage}, {rounding:?}");
            let mut seen = 0;
            for (whole, shards) in whole.iter().zip(&shards) {
                assert_same(&what, "copies", &whole.copies, &shards.copies);
                assert_same(&what, "averages", &whole.averages, &shards.averages);
                for (element, value) in &shards.masters {
                    assert_eq!(*value, whole.parameters[*element], "{what}: {element}");
                    assert!(!is_vector(*element), "{what}: vectors are whole");
                }
                seen += shards.masters.len();
                for (element, value) in shards.parameters.iter().enumerate() {
                    let want = match is_vector(element) {
                        true => whole.parameters[element],
                        false => whole.copies[element],
                    };
                    assert_eq!(*value, want, "{what}: element {element}");
                }
                // A vector of one and one of 33, in their places of 16.
                assert_eq!(shards.held, 16 + 48, "{what}");
            }
            let matrices: usize = SIZES[..1]
                .iter()
                .chain(&SIZES[2..3])
                .map(|(_, n)| n.next_multiple_of(16))
                .sum();
            assert_eq!(seen, matrices, "{what}: every value has one rank");
        }
    }
}

#[test]
fn programs_that_read_what_is_in_shards_in_f32_are_refused() {
    for on in RankOn::all() {
        on_ranks(2, |seat| {
            let how = How {
                precision: DType::Bf16,
                masters: Some(true),
                ..How::new(on, ATOM)
            };
            let Rank {
                layout,
                executor,
                session,
            } = Rank::load(how, &seat);
            drop(session);
            let reading = |precision| {
                let mut tape = Tape::new(layout.clone(), |_| false).in_precision(precision);
                let matrix = layout.get("b.matrix").unwrap().spec.clone();
                let matrix = tape.parameter(matrix).unwrap();
                let copied = tape.record_one(keel::tape::Copy, &[matrix]).unwrap();
                tape.output(copied, "copied");
                let program = Program::compile(tape, &on.options()).unwrap();
                executor.load(Arc::new(program)).map(drop)
            };
            reading(DType::Bf16).unwrap();
            let problem = reading(DType::F32).unwrap_err().to_string();
            assert!(problem.contains("which are in shards"), "{problem}");
            executor.hold_in_bf16(&[]).unwrap();
            reading(DType::F32).unwrap();
        });
    }
}
