//! Steps over many ranks on paper: the simulation against closed forms, a rank's memory against its arithmetic, and what the
//! command prints.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use keel::data::chat::ChatTokenizer;
use keel::executor::Device;
use keel::model::declare;
use keel::ops::MASTER_STATE;
use keel::ranks::order::{ATOM, BUCKET, Cut};
use keel::ranks::simulate::{Both, Event, Links, Simulated, simulate};
use keel::ranks::{Collective, Kind, World};
use keel::tape::{CompileTarget, ParameterLayout};
use keel::train::{Cluster, RankMemory, RankStep, Recipe, Sharding, Sizes, compile_rank_step};

use crate::command::keel;

/// Of a second: what sums of some hundred f64 of seconds may differ by.
const ROUNDING: f64 = 1e-12;

fn links(node: usize) -> Links {
    Links {
        node,
        node_bandwidth: 2e9,
        node_latency: 3e-6,
        network_bandwidth: 5e8,
        network_latency: 7e-6,
    }
}

/// A collective that keeps links of `links(ranks)` busy for `seconds`.
fn lasting(seconds: f64, ranks: usize) -> Collective {
    let links = links(ranks);
    let messages = (ranks - 1) as f64;
    let slice = (seconds - messages * links.node_latency) * links.node_bandwidth / messages;
    Collective {
        kind: Kind::Exchange,
        slice: slice.round() as usize,
    }
}

/// Seconds that a collective keeps those links busy: slices are whole bytes.
fn busy(collective: &Collective, ranks: usize) -> f64 {
    links(ranks).seconds(collective, ranks).node
}

fn near(found: f64, want: f64) -> bool {
    (found - want).abs() <= ROUNDING
}

proptest! {
    #[test]
    fn every_rank_sends_its_slices_once_and_gathers_enter_a_node_once(
        nodes in 1..6_usize, node in 1..9_usize, slice in 1..1_000_000_usize,
    ) {
        let (ranks, links) = (nodes * node, links(node));
        let exchange = Collective { kind: Kind::Exchange, slice };
        let Both { node: within, network } = links.bytes(&exchange, ranks);
        prop_assert_eq!(within + network, exchange.on_the_wire(ranks) as f64);
        prop_assert_eq!(within, (slice * (node - 1)) as f64);
        let gather = Collective { kind: Kind::AllGather, slice };
        let bytes = links.bytes(&gather, ranks);
        prop_assert!((bytes.node + bytes.network - gather.on_the_wire(ranks) as f64).abs() < 1e-3);
        // All ranks of a node together bring in what the other nodes have.
        prop_assert!((bytes.network * node as f64 - (slice * (ranks - node)) as f64).abs() < 1e-3);
    }

    #[test]
    fn buckets_that_come_evenly_take_the_time_of_a_line_of_two_machines(
        count in 1..40_usize, apart in 1e-3..5e-3_f64, lasts in 1e-3..5e-3_f64, ranks in 2..9_usize,
    ) {
        let collective = lasting(lasts, ranks);
        let lasts = busy(&collective, ranks);
        let mut events: Vec<Event> = (0..count).flat_map(|_| [Event::Compute(apart), Event::Begin(collective)]).collect();
        events.extend((0..count).map(Event::Finish));
        let step = simulate(&events, &links(ranks), ranks);
        // The first has to be made and the last to be sent; between them the slower of both rules.
        let want = apart + lasts + (count - 1) as f64 * apart.max(lasts);
        prop_assert!(near(step.seconds, want), "{} {want}", step.seconds);
        prop_assert!(near(step.computing, count as f64 * apart));
        prop_assert!(near(step.sending, count as f64 * lasts));
        prop_assert!(near(step.waiting, want - count as f64 * apart));
    }

    #[test]
    fn nothing_is_hidden_twice_and_no_time_is_lost(
        seconds in prop::collection::vec((0.0..4e-3_f64, 1e-4..4e-3_f64, any::<bool>()), 1..30), ranks in 2..9_usize,
    ) {
        let mut events = Vec::new();
        let mut finished = 0;
        for (index, (computing, lasts, waits)) in seconds.iter().enumerate() {
            events.extend([Event::Compute(*computing), Event::Begin(lasting(*lasts, ranks))]);
            if *waits {
                events.extend((finished..=index).map(Event::Finish));
                finished = index + 1;
            }
        }
        events.extend((finished..seconds.len()).map(Event::Finish));
        let step = simulate(&events, &links(ranks), ranks);
        prop_assert!(near(step.seconds, step.computing + step.waiting));
        prop_assert!(step.seconds >= step.computing.max(step.sending) - ROUNDING);
        prop_assert!(step.hidden() >= -ROUNDING && step.waiting >= 0.0);
        prop_assert!(step.seconds <= step.computing + step.sending + ROUNDING);
    }

    #[test]
    fn a_rank_s_bytes_are_those_of_the_formulas(atoms in 1..4_usize, ranks in prop::sample::select(vec![1_usize, 2, 4, 8, 64])) {
        let trained = (atoms * ranks * ATOM) as u64;
        let sizes = Sizes { parameters: trained, is_bf16: true, in_shards: trained, trained, partial_sums: 0, states: 2 * trained, activations: 77 };
        let share = trained / ranks as u64;
        let cut = Cut::new(trained as usize, ranks, BUCKET);
        prop_assert_eq!(cut.padded() as u64, trained);
        let (wire, sums) = if ranks == 1 { (0, 0) } else { (4 * trained, 4 * share) };
        for (sharding, fixed, buckets) in [
            (Sharding::Nothing, 18 * trained, wire),
            (Sharding::Moments, 6 * trained + 12 * share + sums, wire),
            (Sharding::Gradients, 2 * trained + 12 * share + if ranks == 1 { 4 * trained } else { sums + wire }, wire),
        ] {
            let memory = sizes.of_rank(sharding, ranks, 5);
            let engine = if ranks == 1 { 0 } else { 5 };
            prop_assert_eq!(memory.total(), fixed + buckets + 77 + engine, "level {}", sharding.level());
        }
        // In f32 the masters are what is read: only moments can be shared.
        let single = Sizes { is_bf16: false, ..sizes }.of_rank(Sharding::Moments, ranks, 0);
        prop_assert_eq!((single.parameters, single.masters, single.moments), (4 * trained, 0, 8 * share));
    }
}

#[test]
fn one_rank_sends_nothing_and_waits_for_nothing() {
    let gather = Collective {
        kind: Kind::AllGather,
        slice: 1 << 20,
    };
    let events = [Event::Compute(0.5), Event::Begin(gather), Event::Finish(0)];
    let step = simulate(&events, &links(8), 1);
    assert_eq!((step.seconds, step.waiting, step.sending), (0.5, 0.0, 0.0));
    assert_eq!(step.bytes, Both::default());
    assert_eq!(step.efficiency(), 1.0);
}

/// A recipe, its layout, and a GPU.
fn to_plan() -> (Recipe, Arc<ParameterLayout>, CompileTarget) {
    let sets = ["stage.world-knowledge.micro_batch_size=2".to_owned()];
    let recipe = Recipe::load("tiny", &sets).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    (recipe, layout, Device::Cuda.compile_target(1, None))
}

/// The step of a recipe's stage, planned for a GPU, on `ranks` ranks.
fn planned(ranks: usize) -> RankStep {
    let (recipe, layout, target) = to_plan();
    RankStep::plan(&recipe, "world-knowledge", &layout, target, None, ranks).unwrap()
}

#[test]
fn a_stage_s_step_computes_as_long_on_all_ranks_together_as_on_one() {
    let cluster = Cluster::h100(2);
    let alone = planned(1);
    let one = alone.simulate(Sharding::Nothing, &cluster);
    assert_eq!((one.waiting, one.bytes), (0.0, Both::default()));
    // Four would have one micro-batch each, and a program that adds none up.
    let ranks = 2;
    let step = planned(ranks);
    assert_eq!(step.micro_batches() * ranks, alone.micro_batches());
    let simulated = step.simulate(Sharding::Nothing, &cluster);
    // Gradients by micro-batches, the update once on every rank.
    let update = simulate(&update_of(&alone, &cluster), &cluster.links, 1).seconds;
    let want = (one.computing - update) / ranks as f64 + update;
    assert!(near(simulated.computing, want), "{simulated:?} {want}");
    let want = 2.0 * slices(&alone, ranks);
    assert!((sent(&simulated) - want).abs() < 1e-3, "{simulated:?}");
    for sharding in [Sharding::Moments, Sharding::Gradients] {
        // What is recorded sends gradients once, or after every micro-batch, and parameters once, matrices as bf16 copies and
        // vectors in f32, and besides a few sums and counts.
        let recorded = step.simulate(sharding, &cluster);
        let runs = match sharding {
            Sharding::Gradients => step.micro_batches(),
            _ => 1,
        };
        let want = (runs as f64 + 0.5) * slices(&alone, ranks);
        let found = sent(&recorded);
        assert!(
            found >= want && found < want + 65_536.0,
            "{sharding:?}: {found}, not {want}"
        );
        assert!(recorded.waiting > 0.0 && recorded.seconds > one.computing / ranks as f64);
        // Its arenas are those of the formulas; what is under way shares memory with activations.
        let memory = step.memory(sharding, 7);
        let formula = planned_sizes(&alone).of_rank(sharding, ranks, 7);
        assert_eq!(arenas(&memory), arenas(&formula), "{sharding:?}");
        // Which share of the matrices lies in a rank's slices is not the same for all: all ranks together have each once, and
        // what stays whole as often as there are ranks.
        let of_ranks = masters_of_ranks(ranks, sharding.level());
        let own: u64 = of_ranks.iter().map(|masters| masters.own).sum();
        let [first, ..] = of_ranks[..] else {
            panic!("there are ranks");
        };
        assert!(first.in_shards > 0);
        assert_eq!(own, first.in_shards, "{sharding:?}");
        let all = alone.memory(Sharding::Nothing, 7).masters;
        let whole = all - 4 * first.in_shards;
        assert_eq!(memory.masters, whole + 4 * first.own, "{sharding:?}");
        // Before and after the stage each rank has all of them, and its own besides while they are gathered.
        let unsharded = memory.parameters + all;
        assert!(memory.between_stages >= unsharded + 4 * first.own);
        assert_eq!(
            memory.peak(),
            memory.total().max(memory.between_stages + memory.engine)
        );
    }
}

/// Of the master weights of a rank, in elements.
#[derive(Clone, Copy)]
struct Masters {
    /// Those of which each rank has a part.
    in_shards: u64,
    /// The rank's part.
    own: u64,
}

/// Of each rank's program of the step that [`planned`] plans.
fn masters_of_ranks(ranks: usize, zero_stage: usize) -> Vec<Masters> {
    let (recipe, layout, target) = to_plan();
    let recipe = Recipe {
        zero_stage,
        ..recipe.of_rank(ranks).unwrap()
    };
    let stage = recipe.stage("world-knowledge").unwrap();
    let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
    let of_rank = |rank| {
        let world = World::of_one_host(rank, ranks);
        let program =
            compile_rank_step(&recipe, stage, &layout, &shape, target, None, world).unwrap();
        let in_shards = program.masters_in_shards().iter().map(|range| range.len());
        let mut state = program.optimizer_state().iter();
        let own = state.find(|state| state.name == MASTER_STATE).unwrap();
        Masters {
            in_shards: in_shards.sum::<usize>() as u64,
            own: program.arena_elements(own.arena, 0) as u64,
        }
    };
    (0..ranks).map(of_rank).collect()
}

/// The bytes of a rank that lie in arenas of their own and are the same for all, and the engine's.
fn arenas(memory: &RankMemory) -> [u64; 4] {
    let RankMemory {
        parameters,
        gradients,
        moments,
        engine,
        ..
    } = *memory;
    [parameters, gradients, moments, engine]
}

/// The sizes of a step that is planned for one device.
fn planned_sizes(alone: &RankStep) -> Sizes {
    let memory = alone.memory(Sharding::Nothing, 0);
    let trained = memory.gradients / 4;
    Sizes {
        parameters: memory.parameters / 2,
        is_bf16: true,
        in_shards: 0,
        trained,
        partial_sums: 0,
        states: memory.moments / 4,
        activations: memory.activations,
    }
}

/// Bytes that a rank sends of all its slices once, in f32.
fn slices(alone: &RankStep, ranks: usize) -> f64 {
    let trained = planned_sizes(alone).trained as usize;
    let cut = Cut::new(trained, ranks, BUCKET);
    (cut.owned() * 4 * (ranks - 1)) as f64
}

fn sent(simulated: &Simulated) -> f64 {
    simulated.bytes.node + simulated.bytes.network
}

/// The last computing of a rank alone is its update.
fn update_of(alone: &RankStep, cluster: &Cluster) -> Vec<Event> {
    let events = alone.events(Sharding::Nothing, cluster);
    vec![*events.last().expect("a step computes")]
}

#[test]
fn ranks_that_cannot_have_equal_shares_are_refused_with_those_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let args = [
            "plan",
            "--recipe",
            "tiny",
            "--stage",
            "world-knowledge",
            "--device",
            "gpu",
        ];
        keel(folder.path(), &[&args, more].concat())
    };
    let micro = ["--set", "stage.world-knowledge.micro_batch_size=2"];
    plan(&[&micro[..], &["--ranks", "3", "--node", "1"]].concat()).refused(&[
        "--ranks: expected a divisor of the 4 micro-batches",
        ": 1, 2, 4",
    ]);
    plan(&["--ranks", "12"]).refused(&["--ranks 12: expected a multiple of --node 8"]);
    plan(&["--ranks", "2", "--svg", "drawing"])
        .refused(&["--svg: expected a drawing of one device"]);
    plan(&["--ranks", "2", "--share-of-peak", "0"])
        .refused(&["--share-of-peak: expected more than 0%"]);
    plan(&["--ranks", "2", "--network-bandwidth", "0"]).misunderstood(&["--network-bandwidth"]);
    plan(&["--node", "2"]).misunderstood(&["--ranks"]);
}

#[test]
fn the_plan_of_ranks_shows_classes_seconds_and_assumptions() {
    let folder: &Path = &std::env::temp_dir();
    let args = [
        "plan",
        "--recipe",
        "tiny",
        "--stage",
        "world-knowledge",
        "--ranks",
        "2",
    ];
    let micro = ["--set", "stage.world-knowledge.micro_batch_size=2"];
    let said = keel(folder, &[&args[..], &micro, &["--device", "gpu"]].concat())
        .fine()
        .stdout;
    for part in [
        "; 2 ranks, 2 to a node",
        "bytes of a rank, level",
        "0 all whole",
        "1 moments and masters sharded",
        "2 gradients sharded too",
        "2.0 GiB",
        "between stages",
        "largest micro-batch within 80.0 GiB, moments and masters sharded: ",
        "not hidden",
        "assumed, not measured: H100",
        "45 GB/s between nodes",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    let on_processors = keel(folder, &[&args[..], &micro, &["--device", "cpu"]].concat())
        .fine()
        .stdout;
    assert!(
        on_processors.contains("seconds are modelled for GPUs alone"),
        "{on_processors}"
    );
    assert!(!on_processors.contains("H100"), "{on_processors}");
}
