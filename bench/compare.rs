//! Training steps beside PyTorch's: every program is loaded once, and then they take turns, a burst of steps each, so that
//! what else the machine does falls on all of them. Beside wall time stands the processor time of all threads, which waiting
//! for a core does not lengthen.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use keel::executor::{Precision, SelectedDevice};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::lead::{BUDGETED, FEATURES, PUBLISHED_STEP, STEPS, load, peer_step};
use super::peer::peer;
use super::{WARM_UP, peak_flops, peak_memory, threads};

/// Bursts of each program.
const BURSTS: usize = 9;

/// Seconds that all threads of this process have computed.
pub fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Loads a step and runs one for each line of input. Answers each with a line of JSON, the first of which says that it is
/// ready.
pub fn serve(step: &str, selected: &SelectedDevice) {
    let mut lead = load(step, selected);
    (0..WARM_UP).for_each(|_| lead.run());
    let flops = lead.session.program().cost().flops;
    let planned_mib = lead.planned_bytes as f64 / (1 << 20) as f64;
    println!(
        "{}",
        json!({ "flops": flops, "planned_mib": planned_mib, "device": lead.executor.describe() })
    );
    for line in std::io::stdin().lines() {
        line.expect("the comparison writes lines");
        // The roof at this moment: what others take of the cores, they take of both.
        let peak = peak_flops();
        let (start, before) = (Instant::now(), processor_seconds());
        lead.run();
        println!(
            "{}",
            json!({
                "ms": start.elapsed().as_secs_f64() * 1e3,
                "processor_ms": (processor_seconds() - before) * 1e3,
                "peak_flops": peak,
                "rss_peak_mib": peak_memory(),
            })
        );
    }
}

/// A program that runs bursts.
struct Program {
    name: &'static str,
    /// Its precision, and what else tells it from others of the name.
    form: String,
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    ready: Value,
    bursts: Vec<Value>,
}

impl Program {
    fn start(name: &'static str, form: &str, mut command: Command) -> Result<Program, String> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|problem| format!("{name} {form}: {problem}; {NEEDS}"))?;
        let to = process.stdin.take().expect("it is piped");
        let from = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut program = Program {
            name,
            form: form.to_owned(),
            process,
            to,
            from,
            ready: Value::Null,
            bursts: Vec::new(),
        };
        program.ready = program.answer()?;
        Ok(program)
    }

    /// The next line of JSON.
    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        while !line.starts_with('{') {
            line.clear();
            match self.from.read_line(&mut line) {
                Ok(0) => {
                    return Err(format!(
                        "{} ended without an answer; {NEEDS}",
                        self.called()
                    ));
                }
                Ok(_) => {}
                Err(problem) => return Err(format!("{}: {problem}", self.called())),
            }
        }
        serde_json::from_str(&line).map_err(|problem| format!("{}: {problem}", self.called()))
    }

    /// What errors call it.
    fn called(&self) -> String {
        format!("{} {}", self.name, self.form)
    }

    fn burst(&mut self) -> Result<(), String> {
        writeln!(self.to).map_err(|problem| format!("{}: {problem}", self.called()))?;
        let burst = self.answer()?;
        self.bursts.push(burst);
        Ok(())
    }

    /// The numbers of that name, in order.
    fn sorted(&self, key: &str) -> Vec<f64> {
        let mut values: Vec<f64> = self.bursts.iter().filter_map(|b| b[key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, key: &str) -> f64 {
        let values = self.sorted(key);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// `median (least–most)` of the wall time.
    fn spread(&self) -> String {
        let values = self.sorted("ms");
        let (least, most) = (values.first(), values.last());
        format!(
            "{:.0} ms ({:.0}–{:.0})",
            self.median("ms"),
            least.unwrap_or(&f64::NAN),
            most.unwrap_or(&f64::NAN)
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended where its input was closed; otherwise nothing of it is wanted any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a missing Python or package is answered with.
const NEEDS: &str = "give the python of an environment with bench/peers/requirements.txt";

/// Keel's precisions: the words of the tables.
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// PyTorch's forms: the words of the tables, and its option.
const FORMS: [(&str, Option<&str>); 3] = [
    ("eager f32", None),
    ("eager f32 tuned", Some("--tuned")),
    ("eager bf16", Some("--bf16")),
];

/// Runs Keel and PyTorch in turn, on every step or `only` one, and prints both with the ratios, then every row for bench/results.
pub fn compare(python: &str, only: Option<&str>) -> Result<(), String> {
    let steps = STEPS.into_iter().chain([PUBLISHED_STEP]);
    let mut steps: Vec<&str> = steps.map(|(step, _)| step).collect();
    steps.extend([BUDGETED, FEATURES]);
    if let Some(only) = only.filter(|only| !steps.contains(only)) {
        let known = steps.join(", ");
        return Err(format!("--step takes one of {known}, not {only}"));
    }
    steps.retain(|step| only.is_none_or(|only| only == *step));
    println!(
        "| step | Keel f32 | of peak | processor | PyTorch f32 | tuned allocator | PyTorch bf16 | Keel bf16 | processor | f32 ÷ f32 | bf16 ÷ better PyTorch | peak MiB: Keel f32 (plan), bf16 (plan) | PyTorch f32, bf16 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for step in steps {
        let programs = run(step, python)?;
        println!("{}", line(step, &programs));
        rows.extend(programs.iter().map(|program| row(step, program)));
    }
    println!("\nprogram,step,form,median_ms,least_ms,most_ms,processor_ms,peak_memory_mib");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

/// A step's line of the table: wall times, and every ratio in wall time (in processor time).
fn line(step: &str, programs: &[Program; 5]) -> String {
    let [single, half, eager, tuned, eager_half] = programs;
    let share = single.ready["flops"].as_f64().unwrap_or(f64::NAN)
        / (single.median("ms") / 1e3)
        / single.median("peak_flops");
    // How many times as fast as the peers' fastest a program of ours is.
    let lead = |ours: &Program, peers: &[&Program]| {
        let [wall, processor] = ["ms", "processor_ms"].map(|key| {
            let fastest = peers.iter().map(|peer| peer.median(key));
            fastest.fold(f64::INFINITY, f64::min) / ours.median(key)
        });
        format!("**{wall:.2}×** ({processor:.2}×)")
    };
    let memory = |program: &Program| format!("{:.0}", program.median("rss_peak_mib"));
    let planned = |program: &Program| {
        let plan = program.ready["planned_mib"].as_f64().unwrap_or(f64::NAN);
        format!("{} ({plan:.0})", memory(program))
    };
    let cells = [
        step.to_owned(),
        single.spread(),
        format!("{:.0} %", 100.0 * share),
        format!("{:.0} ms", single.median("processor_ms")),
        eager.spread(),
        tuned.spread(),
        eager_half.spread(),
        half.spread(),
        format!("{:.0} ms", half.median("processor_ms")),
        lead(single, &[eager]),
        lead(half, &[eager, tuned, eager_half]),
        format!("{}, {}", planned(single), planned(half)),
        format!("{}, {}", memory(eager), memory(eager_half)),
    ];
    format!("| {} |", cells.join(" | "))
}

/// A program's row of bench/results.
fn row(step: &str, program: &Program) -> String {
    let [times, processor] = ["ms", "processor_ms"].map(|key| program.sorted(key));
    format!(
        "{},{step},{},{:.1},{:.1},{:.1},{:.1},{:.0}",
        program.name,
        program.form,
        program.median("ms"),
        times.first().unwrap_or(&f64::NAN),
        times.last().unwrap_or(&f64::NAN),
        processor.get(processor.len() / 2).unwrap_or(&f64::NAN),
        program.median("rss_peak_mib"),
    )
}

/// Every program with its bursts: Keel's in the order of [`PRECISIONS`], then PyTorch's in the order of [`FORMS`].
fn run(step: &str, python: &str) -> Result<[Program; 5], String> {
    let own = std::env::current_exe().map_err(|problem| problem.to_string())?;
    let mut programs = Vec::new();
    for precision in PRECISIONS {
        let mut keel = Command::new(&own);
        let precision = precision.name();
        keel.args(["--serve", step, "--precision", precision]);
        programs.push(Program::start("keel", precision, keel)?);
    }
    for (form, option) in FORMS {
        let mut command = peer(python, "steps.py");
        // As many threads as Keel takes: those of the cores that `taskset` leaves.
        let (warm_up, threads) = (WARM_UP.to_string(), threads().to_string());
        let counts = ["--warm-up", &warm_up, "--threads", &threads, "--serve"];
        command.arg(peer_step(step)).args(counts).args(option);
        programs.push(Program::start("pytorch", form, command)?);
    }
    for _ in 0..BURSTS {
        for program in &mut programs {
            program.burst()?;
        }
    }
    programs
        .try_into()
        .map_err(|_| "five programs run".to_owned())
}
