//! A stage's step over many ranks, on paper: bytes of a rank by class, what it sends, and what of that computing hides.
//!
//! It reads the planned program of one rank: how long each op takes by the work it does, and which op writes the last gradient
//! of each bucket, which is when the bucket can be sent.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::masters::gathering;
use super::recipe::{Recipe, Stage};
use super::step_program::{compile_rank_step, whole_step_flops};
use keel_base::error::Result;
use keel_data::chat::ChatTokenizer;
use keel_engine::ops::MASTER_STATE;
use keel_engine::program::{MemoryReport, Place, PlannedOp, Program};
use keel_engine::tape::{Arena, CollectivePart, CompileTarget, ParameterLayout, Target};
use keel_ranks::order::{BUCKET, Cut, partial_sums};
use keel_ranks::simulate::{Event, Links, Simulated, simulate};
use keel_ranks::{Collective, Kind, World};

/// Devices and links of a cluster, as a simulation assumes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    /// Operations per second of one device, at most.
    pub peak_flops: f64,
    /// The share of that which a step reaches.
    pub share_of_peak: f64,
    /// Bytes per second that a device's memory moves.
    pub memory_bandwidth: f64,
    /// How ranks are joined.
    pub links: Links,
}

impl Cluster {
    /// H100 cards of 80 GB, `node` to a node, joined by NVLink there and by one 400 Gb/s adapter a card outside.
    pub fn h100(node: usize) -> Cluster {
        Cluster {
            peak_flops: 989e12,
            share_of_peak: 0.4,
            memory_bandwidth: 3.35e12,
            links: Links {
                node,
                node_bandwidth: 350e9,
                node_latency: 4e-6,
                network_bandwidth: 45e9,
                network_latency: 10e-6,
            },
        }
    }
}

/// What each rank keeps only its own part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharding {
    /// Nothing: each rank has all of everything.
    Nothing,
    /// Moments, and the sums of gradients that update them: what training over ranks does by default.
    Moments,
    /// Gradients too: `zero_stage = 2`.
    Gradients,
}

impl Sharding {
    /// All, by level.
    pub const ALL: [Sharding; 3] = [Sharding::Nothing, Sharding::Moments, Sharding::Gradients];

    /// 0, 1 or 2.
    pub const fn level(self) -> usize {
        self as usize
    }
}

/// Bytes of one rank by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankMemory {
    /// What the step's ops read of the model.
    pub parameters: u64,
    /// The master weights, where they are apart from what is read: whole ones, and the rank's part of the others.
    pub masters: u64,
    /// Gradients.
    pub gradients: u64,
    /// What the optimiser keeps.
    pub moments: u64,
    /// What is on its way to and from other ranks.
    pub buckets: u64,
    /// The arena of activations.
    pub activations: u64,
    /// What the engine that moves bytes takes by itself.
    pub engine: u64,
    /// What is held before and after the stage, in the place of all but the engine's: parameters with all master weights, and what
    /// gathers sharded ones.
    pub between_stages: u64,
}

impl RankMemory {
    /// All that a step takes.
    pub fn total(&self) -> u64 {
        let planned = self.parameters + self.masters + self.gradients + self.moments;
        planned + self.buckets + self.activations + self.engine
    }

    /// The most that is held at once: in a step, or before or after the stage.
    pub fn peak(&self) -> u64 {
        self.total().max(self.between_stages + self.engine)
    }
}

/// Sizes of a program over which a rank's memory is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Elements of all parameters of the model.
    pub parameters: u64,
    /// Whether matrices are read in bf16.
    pub is_bf16: bool,
    /// Elements of those whose master weights are sharded where anything is.
    pub in_shards: u64,
    /// Elements that are trained.
    pub trained: u64,
    /// Sums of gradients, whole ones, that wait while those of micro-batches are added in a tree.
    pub partial_sums: u64,
    /// Numbers that the optimiser keeps, of all of them together.
    pub states: u64,
    /// Bytes of the arena of activations.
    pub activations: u64,
}

impl Sizes {
    /// Of a planned step.
    pub fn of(program: &Program, layout: &ParameterLayout) -> Sizes {
        let elements = |place: Arena| program.arena_elements(place, layout.elements()) as u64;
        Sizes {
            parameters: layout.elements() as u64,
            is_bf16: program.has_bf16_parameters(),
            in_shards: program
                .masters_in_shards()
                .iter()
                .map(Range::len)
                .sum::<usize>() as u64,
            trained: elements(Arena::Gradients),
            partial_sums: partial_sums(program.tree().unwrap_or(1)) as u64,
            states: {
                let state = program.optimizer_state().iter();
                state.map(|state| elements(state.arena)).sum()
            },
            activations: program.arena_bytes() as u64,
        }
    }

    /// What one of `ranks` ranks takes, the engine taking `engine` bytes by itself.
    pub fn of_rank(&self, sharding: Sharding, ranks: usize, engine: u64) -> RankMemory {
        let cut = Cut::new(self.trained as usize, ranks, BUCKET);
        let (all, owned) = match sharding {
            Sharding::Nothing => (self.trained, self.trained),
            _ => (cut.padded() as u64, cut.owned() as u64),
        };
        let bucket = (cut.slice() * ranks * 4) as u64;
        // A bucket arrives while the next one is being sent; kept whole, it is received beside what was sent.
        let in_flight = 2.min(cut.buckets() as u64) * bucket;
        let whole = match sharding {
            Sharding::Nothing => self.parameters,
            _ => self.parameters - self.in_shards + self.in_shards.div_ceil(ranks as u64),
        };
        let (parameters, masters) = match self.is_bf16 {
            false => (4 * self.parameters, 0),
            true => (2 * self.parameters, 4 * whole),
        };
        let (gradients, buckets) = match sharding {
            _ if ranks == 1 => (4 * self.trained * (1 + self.partial_sums), 0),
            // What is sent lies in three buckets: two under way, and one that is filled.
            Sharding::Gradients => (
                4 * owned * (1 + self.partial_sums) + 3.min(cut.buckets() as u64) * bucket,
                in_flight,
            ),
            // Beside a rank's own gradients, the sums of its slices.
            Sharding::Moments => (4 * all * (1 + self.partial_sums) + 4 * owned, in_flight),
            Sharding::Nothing => (4 * all * (1 + self.partial_sums), in_flight),
        };
        RankMemory {
            parameters,
            masters,
            gradients,
            // Beyond 64 bits for the largest models.
            moments: 4
                * (u128::from(self.states) * u128::from(owned) / u128::from(self.trained.max(1)))
                    as u64,
            buckets,
            activations: self.activations,
            engine: if ranks == 1 { 0 } else { engine },
            between_stages: self.unsharded(),
        }
    }

    /// Bytes of the parameters with all master weights.
    fn unsharded(&self) -> u64 {
        let each = if self.is_bf16 { 6 } else { 4 };
        each * self.parameters
    }
}

/// A stage's step, planned for one of many ranks.
#[derive(Clone, Debug)]
pub struct RankStep {
    /// What the rank runs, with its collectives where there are other ranks: moments in shards, and gradients too.
    programs: [Program; 2],
    /// The same micro-batch on one device alone.
    alone: Program,
    /// The rank's share of the stage.
    stage: Stage,
    ranks: usize,
    sizes: Sizes,
    /// What the rank takes, by the arenas of these programs.
    planned: [RankMemory; 2],
}

impl RankStep {
    /// Plans what one of `ranks` ranks does in a step of stage `name`: its share of the micro-batches.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] where the ranks cannot have equal shares; whatever planning reports.
    pub fn plan(
        recipe: &Recipe,
        name: &str,
        layout: &Arc<ParameterLayout>,
        compile_target: CompileTarget,
        memory_budget: Option<u64>,
        ranks: usize,
    ) -> Result<RankStep> {
        let of_stage = Recipe {
            stages: vec![recipe.stage(name)?.clone()],
            ..recipe.clone()
        };
        let share = of_stage.of_rank(ranks)?;
        let stage = &share.stages[0];
        // Which id stands for an image token changes no size.
        let shape = share.batch_shape(stage, ChatTokenizer::embedded().image());
        let compile = |ranks, zero_stage| {
            let world = World::of_one_host(0, ranks);
            let share = Recipe {
                zero_stage,
                ..share.clone()
            };
            compile_rank_step(
                &share,
                stage,
                layout,
                &shape,
                compile_target,
                memory_budget,
                world,
            )
        };
        let alone = compile(1, 1)?;
        let programs = [compile(ranks, 1)?, compile(ranks, 2)?];
        let sizes = Sizes::of(&alone, layout);
        let mut planned = programs.each_ref().map(|program| {
            let report = MemoryReport::new(program, layout);
            let read = if sizes.is_bf16 { 2 } else { 4 } * sizes.parameters;
            let sent = report.arena.saturating_sub(sizes.activations);
            let on_their_way = [Arena::RoundedShard, Arena::WholeShard]
                .map(|arena| (program.arena_elements(arena, 0) * arena.element().size()) as u64);
            let on_their_way: u64 = on_their_way.iter().sum();
            let mut state = report.state.iter();
            let own = state.find(|(name, _)| *name == MASTER_STATE);
            let own = own.map_or(0, |(_, bytes)| *bytes);
            RankMemory {
                parameters: read,
                masters: report.parameters - read - on_their_way + own,
                gradients: report.gradients,
                moments: report.moments - own,
                buckets: sent + on_their_way,
                activations: report.arena - sent,
                engine: 0,
                between_stages: sizes.unsharded(),
            }
        });
        for (program, memory) in programs.iter().zip(&mut planned) {
            if !program.masters_in_shards().is_empty() {
                let world = World::of_one_host(0, ranks);
                let gather = gathering(layout, program, compile_target, world)?;
                let own = gather.arena_elements(Arena::GradientShard, 0) * size_of::<f32>();
                let gathering = (own + gather.arena_bytes()) as u64;
                // A processor's executor copies the whole ones to other memory beside them.
                let moving = match compile_target.target {
                    Target::Cuda => 0,
                    _ => {
                        let sharded = program.masters_in_shards().iter().map(Range::len);
                        4 * (sizes.parameters - sharded.sum::<usize>() as u64)
                    }
                };
                memory.between_stages += gathering.max(moving);
            }
        }
        Ok(RankStep {
            planned,
            stage: stage.clone(),
            programs,
            alone,
            ranks,
            sizes,
        })
    }

    /// What each rank takes: by its program's arenas, and where nothing is sharded, for which there is none, by formulas.
    pub fn memory(&self, sharding: Sharding, engine: u64) -> RankMemory {
        match sharding.level().checked_sub(1) {
            Some(level) if self.ranks > 1 => RankMemory {
                engine,
                ..self.planned[level]
            },
            _ => self.sizes.of_rank(sharding, self.ranks, engine),
        }
    }

    /// Floating-point operations of a whole step, of all ranks together.
    pub fn flops(&self) -> f64 {
        self.ranks as f64 * whole_step_flops(&self.alone, &self.stage)
    }

    /// Micro-batches of each rank.
    pub fn micro_batches(&self) -> usize {
        self.stage.micro_batches()
    }

    /// How long it takes.
    pub fn simulate(&self, sharding: Sharding, cluster: &Cluster) -> Simulated {
        simulate(&self.events(sharding, cluster), &cluster.links, self.ranks)
    }

    /// What a rank does in a step, in its order: by its program where there is one.
    pub fn events(&self, sharding: Sharding, cluster: &Cluster) -> Vec<Event> {
        match sharding.level().checked_sub(1) {
            Some(level) => self.recorded_events(&self.programs[level], cluster),
            None => self.supposed_events(cluster),
        }
    }

    /// What the rank's program does: collectives begin and end where they are recorded.
    fn recorded_events(&self, program: &Program, cluster: &Cluster) -> Vec<Event> {
        let seconds = self.seconds(program, cluster);
        let gradient_ops = program.gradient_ops();
        let mut events = Events::default();
        for run in 1..=self.micro_batches() {
            let is_last = run == self.micro_batches();
            let mut under_way: HashMap<usize, usize> = HashMap::new();
            for (index, op) in program.ops().iter().enumerate() {
                // Only the last run updates, and sends gradients that are kept whole.
                if !is_last && (index >= gradient_ops || program.is_exchange(index)) {
                    continue;
                }
                match op.instruction.op.collective() {
                    None => events.compute(&seconds[index..=index]),
                    Some((number, CollectivePart::Begin(_))) => {
                        let collective = program.collective(op).expect("it begins one");
                        under_way.insert(number, events.begin(collective));
                    }
                    Some((number, CollectivePart::Finish)) => {
                        let begun = under_way[&number];
                        events.list.push(Event::Finish(begun));
                        events.finished = events.finished.max(begun + 1);
                    }
                }
            }
        }
        events.list
    }

    /// What it would do with nothing sharded.
    fn supposed_events(&self, cluster: &Cluster) -> Vec<Event> {
        let seconds = self.seconds(&self.alone, cluster);
        let (gradients, update) = seconds.split_at(self.alone.gradient_ops());
        let cut = Cut::new(self.sizes.trained as usize, self.ranks, BUCKET);
        let ready = self.buckets_ready(&cut);
        let mut events = Events::default();
        for run in 1..=self.micro_batches() {
            let is_sent = run == self.micro_batches() && self.ranks > 1;
            let mut first = 0;
            for &(op, _) in ready.iter().filter(|_| is_sent) {
                events.compute(&gradients[first..op + 1]);
                events.begin(Collective {
                    kind: Kind::Exchange,
                    slice: cut.slice() * 4,
                });
                first = op + 1;
            }
            events.compute(&gradients[first..]);
            events.finish();
        }
        // Every rank adds its slice, all need all sums, and each updates everything.
        events.gather(&cut, self.ranks);
        events.compute(update);
        events.list
    }

    /// Seconds of each op. Those of a micro-batch reach the share of the peak together, each by the share that its work or its
    /// traffic has; the update moves memory at its best. No op is faster than the device.
    fn seconds(&self, program: &Program, cluster: &Cluster) -> Vec<f64> {
        let at_best = |op: &PlannedOp| {
            let cost = program.op_cost(op);
            let traffic = (cost.bytes_read + cost.bytes_written) / cluster.memory_bandwidth;
            match op.instruction.op.collective() {
                Some(_) => 0.0,
                None => traffic.max(cost.flops / cluster.peak_flops),
            }
        };
        let gradient_ops = program.gradient_ops();
        // What sends gradients stands among them, and is the update's.
        let is_run = |index: usize| index < gradient_ops && !program.is_exchange(index);
        let run = || {
            program
                .ops()
                .iter()
                .enumerate()
                .filter(|(index, _)| is_run(*index))
        };
        let flops: f64 = run().map(|(_, op)| program.op_cost(op).flops).sum();
        let best: f64 = run().map(|(_, op)| at_best(op)).sum();
        let expected = flops / (cluster.share_of_peak * cluster.peak_flops);
        let slower = if best > 0.0 {
            (expected / best).max(1.0)
        } else {
            1.0
        };
        let scaled = program.ops().iter().enumerate().map(|(index, op)| {
            let slower = if is_run(index) { slower } else { 1.0 };
            slower * at_best(op)
        });
        scaled.collect()
    }

    /// For each bucket the op that writes its last gradient, in the order in which they come.
    fn buckets_ready(&self, cut: &Cut) -> Vec<(usize, usize)> {
        let mut ready: Vec<(usize, usize)> = (0..cut.buckets()).map(|bucket| (0, bucket)).collect();
        let ops = &self.alone.ops()[..self.alone.gradient_ops()];
        let size = (cut.slice() * self.ranks).max(1);
        for (index, op) in ops.iter().enumerate() {
            for output in &op.instruction.outputs {
                let Place::Fixed(Arena::Gradients, first) = self.alone.place(*output) else {
                    continue;
                };
                let last = first + self.alone.ty(*output).numel().max(1) - 1;
                for bucket in first / size..=(last / size).min(cut.buckets() - 1) {
                    ready[bucket].0 = index;
                }
            }
        }
        ready.sort_unstable();
        ready
    }
}

/// Events under way.
#[derive(Default)]
struct Events {
    list: Vec<Event>,
    begun: usize,
    finished: usize,
}

impl Events {
    fn compute(&mut self, seconds: &[f64]) {
        let seconds: f64 = seconds.iter().sum();
        if seconds > 0.0 {
            self.list.push(Event::Compute(seconds));
        }
    }

    /// Begins a collective; returns the how-many-eth it is.
    fn begin(&mut self, collective: Collective) -> usize {
        self.list.push(Event::Begin(collective));
        self.begun += 1;
        self.begun - 1
    }

    /// Waits for all that were begun.
    fn finish(&mut self) {
        self.list
            .extend((self.finished..self.begun).map(Event::Finish));
        self.finished = self.begun;
    }

    /// Gathers every bucket in f32, and waits.
    fn gather(&mut self, cut: &Cut, ranks: usize) {
        if ranks == 1 {
            return;
        }
        for _ in 0..cut.buckets() {
            self.begin(Collective {
                kind: Kind::AllGather,
                slice: cut.slice() * 4,
            });
        }
        self.finish();
    }
}
