//! `keel plan --ranks`: what a step takes of each of many ranks, and how long, on paper.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;

use super::super::heading;
use super::super::values::{count, percent, rate, size_or_none};
use super::{Plans, described};
use keel_base::error::{Error, Result};
use keel_base::units::{bytes, counted, flops};
use keel_engine::tape::{ParameterLayout, Target};
use keel_model::declare;
use keel_report::table::Table;
use keel_train::{Cluster, RankStep, Recipe, Sharding, Stage};

/// The memory of an H100, the card that seconds are computed for.
const CARD: u64 = 80 << 30;

/// Options of `keel plan` for many ranks.
#[derive(Clone, Debug, Args)]
pub(super) struct RanksArgs {
    /// Plan for this many ranks: bytes of each, bytes sent, and how much of the sending the computing hides.
    #[arg(long, value_name = "N", value_parser = count, help_heading = heading::RANKS)]
    pub ranks: Option<usize>,
    /// Ranks of a node.
    #[arg(long, value_name = "N", value_parser = count, default_value = "8", requires = "ranks", help_heading = heading::RANKS)]
    node: usize,
    /// Memory that NCCL takes on each GPU by itself.
    #[arg(long, value_name = "BYTES", value_parser = size_or_none, default_value = "2G", requires = "ranks", help_heading = heading::RANKS)]
    engine_memory: u64,
    /// The share of a GPU's peak that a step reaches.
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "40%", requires = "ranks", help_heading = heading::RANKS)]
    share_of_peak: f64,
    /// What a rank sends to others of its node, in GB (10⁹ bytes) a second.
    #[arg(long, value_name = "GB/S", value_parser = rate, default_value = "350", requires = "ranks", help_heading = heading::RANKS)]
    node_bandwidth: f64,
    /// What a rank sends to other nodes, in GB a second.
    #[arg(long, value_name = "GB/S", value_parser = rate, default_value = "45", requires = "ranks", help_heading = heading::RANKS)]
    network_bandwidth: f64,
}

impl RanksArgs {
    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::h100(self.node);
        cluster.share_of_peak = self.share_of_peak;
        cluster.links.node_bandwidth = self.node_bandwidth * 1e9;
        cluster.links.network_bandwidth = self.network_bandwidth * 1e9;
        cluster
    }
}

/// The plans of `ranks` ranks, as text. A stage that so many ranks cannot share is a sentence.
///
/// # Errors
/// [`Error::Setting`] for ranks that fill no whole number of nodes, and where no stage can be shared; whatever planning
/// reports.
pub(super) fn text(
    plans: &Plans<'_>,
    args: &RanksArgs,
    ranks: usize,
    stages: &[Stage],
) -> Result<String> {
    let node = args.node.min(ranks);
    if !ranks.is_multiple_of(node) {
        return Err(Error::setting(
            format!("--ranks {ranks}"),
            format!("a multiple of --node {node}: nodes are alike and full"),
            format!("{} more", ranks % node),
        ));
    }
    if args.share_of_peak == 0.0 {
        return Err(Error::setting("--share-of-peak", "more than 0%", "0%"));
    }
    let layout = declare(&plans.recipe.model, plans.recipe.contrastive_loss)?;
    let mut text = format!(
        "planned for {}; {}, {node} to a node\n",
        described(plans.compile_target),
        counted(ranks as u64, "rank"),
    );
    let mut refused = Vec::new();
    for stage in stages {
        match of_stage(plans, args, ranks, stage, &layout) {
            Ok(planned) => text.push_str(&planned),
            // Other stages may have numbers of micro-batches that divide.
            Err(problem @ Error::Setting { .. }) => {
                let _ = writeln!(text, "\nstage {}: {problem}", stage.name);
                refused.push(problem);
            }
            Err(problem) => return Err(problem),
        }
    }
    if refused.len() == stages.len()
        && let Some(problem) = refused.into_iter().next()
    {
        return Err(problem);
    }
    if is_modelled(plans) {
        text.push_str(&assumptions(&args.cluster()));
    } else {
        text.push_str("\nseconds are modelled for GPUs alone: --device gpu\n");
    }
    Ok(text)
}

/// Whether seconds are computed: for GPUs.
fn is_modelled(plans: &Plans<'_>) -> bool {
    plans.compile_target.target == Target::Cuda
}

fn of_stage(
    plans: &Plans<'_>,
    args: &RanksArgs,
    ranks: usize,
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
) -> Result<String> {
    let plan = |stage: &Stage| {
        let (target, budget) = (plans.compile_target, plans.memory_budget);
        let recipe = Recipe {
            stages: vec![stage.clone()],
            ..plans.recipe.clone()
        };
        RankStep::plan(&recipe, &stage.name, layout, target, budget, ranks)
    };
    let step = plan(stage)?;
    let mut text = format!(
        "\nstage {}: trains {}; {} and {} a step, {} of {} a rank\n",
        stage.name,
        stage.trained_parts(),
        counted(stage.batch_size as u64, "sample"),
        flops(step.flops()),
        step.micro_batches(),
        counted(
            (stage.batch_size / ranks / step.micro_batches()) as u64,
            "sample"
        ),
    );
    let engine = if is_modelled(plans) {
        args.engine_memory
    } else {
        0
    };
    text.push_str(&indented(&memory_table(&step, engine)));
    let limit = plans.memory_limit.or(is_modelled(plans).then_some(CARD));
    if let Some(limit) = limit {
        let fits = |size: usize| {
            let stage = Stage {
                micro_batch_size: Some(size),
                ..stage.clone()
            };
            let taken = |step: RankStep| step.memory(Sharding::Moments, engine).peak();
            plan(&stage).is_ok_and(|step| taken(step) <= limit)
        };
        let sizes = shared_micro_batches(stage, ranks);
        let fitting = sizes.partition_point(|size| fits(*size));
        let found = fitting.checked_sub(1).map(|last| sizes[last]);
        let _ = match found {
            Some(size) => writeln!(
                text,
                "  largest micro-batch within {}, moments and masters sharded: {size} of {} a rank",
                bytes(limit),
                stage.batch_size / ranks,
            ),
            None => writeln!(text, "  not one sample a rank fits within {}", bytes(limit)),
        };
    }
    if is_modelled(plans) {
        text.push_str(&indented(&time_table(&step, &args.cluster())));
    }
    Ok(text)
}

/// The micro-batches, rising, of which every rank has equally many.
fn shared_micro_batches(stage: &Stage, ranks: usize) -> Vec<usize> {
    let one = stage.samples_per_sequence;
    let fits =
        |size: &usize| size.is_multiple_of(one) && stage.batch_size.is_multiple_of(size * ranks);
    (1..=stage.batch_size / ranks).filter(fits).collect()
}

fn indented(table: &str) -> String {
    let lines = table.lines().map(|line| format!("  {}\n", line.trim_end()));
    lines.collect()
}

/// What is kept whole and what is not, in words.
fn named(sharding: Sharding) -> String {
    let what = match sharding {
        Sharding::Nothing => "all whole",
        Sharding::Moments => "moments and masters sharded",
        Sharding::Gradients => "gradients sharded too",
    };
    format!("{} {what}", sharding.level())
}

fn memory_table(step: &RankStep, engine: u64) -> String {
    let heads = [
        "bytes of a rank, level",
        "parameters",
        "masters",
        "gradients",
        "moments",
        "buckets",
        "activations",
        "engine",
        "total",
        "between stages",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for sharding in Sharding::ALL {
        let memory = step.memory(sharding, engine);
        let classes = [
            memory.parameters,
            memory.masters,
            memory.gradients,
            memory.moments,
            memory.buckets,
            memory.activations,
            memory.engine,
            memory.total(),
            memory.between_stages + memory.engine,
        ];
        let mut row = vec![named(sharding)];
        row.extend(classes.map(bytes));
        rows.push(row);
    }
    Table { rows }.render()
}

fn time_table(step: &RankStep, cluster: &Cluster) -> String {
    let heads = [
        "milliseconds of a step",
        "computing",
        "sending",
        "hidden",
        "not hidden",
        "whole",
        "computes",
        "sent in nodes",
        "between nodes",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for sharding in Sharding::ALL {
        let simulated = step.simulate(sharding, cluster);
        let milliseconds = |seconds: f64| format!("{:.1}", 1e3 * seconds);
        rows.push(vec![
            named(sharding),
            milliseconds(simulated.computing),
            milliseconds(simulated.sending),
            milliseconds(simulated.hidden()),
            milliseconds(simulated.waiting),
            milliseconds(simulated.seconds),
            format!("{:.1} %", 100.0 * simulated.efficiency()),
            bytes(simulated.bytes.node as u64),
            bytes(simulated.bytes.network as u64),
        ]);
    }
    Table { rows }.render()
}

fn assumptions(cluster: &Cluster) -> String {
    let links = &cluster.links;
    format!(
        "\nassumed, not measured: H100 cards, {:.0} TFLOP/s each, of which {:.0} % are reached, {:.2} TB/s of memory; a rank \
         sends {:.0} GB/s within a node ({:.0} µs a message) and {:.0} GB/s between nodes ({:.0} µs); gradients are sent in f32, \
         each slice straight to the rank that adds it, while the last micro-batch goes back (level 2: every one), and parameters \
         after the update, matrices as they are read and all else in f32; levels 1 and 2 are the programs that keel train runs with zero_stage 1 and 2, 0 is a formula; all ranks are \
         equally fast\n",
        cluster.peak_flops / 1e12,
        100.0 * cluster.share_of_peak,
        cluster.memory_bandwidth / 1e12,
        links.node_bandwidth / 1e9,
        1e6 * links.node_latency,
        links.network_bandwidth / 1e9,
        1e6 * links.network_latency,
    )
}
