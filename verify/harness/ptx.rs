//! Cases on the machine that executes the kernels' PTX. A run of the tests takes each kernel a few times; `KEEL_PTX=all`
//! takes every case, and `KEEL_PTX_RECORD` names a file for what was seen, which `cargo tool ptx` prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keel::executor::resolved::resolve;
use keel::program::Program;
use keel_ptx::{Approximation, CopyTiming, Options, Record};

/// Cases that a kernel is taken in, unless all are.
const TIMES: u32 = 2;

/// What all cases of this process showed.
pub struct Seen {
    pub record: Arc<Mutex<Record>>,
    taken: Mutex<BTreeMap<&'static str, u32>>,
    cases: Mutex<u64>,
}

/// The one of this process; `None` where there is no PTX to execute, which is said once.
pub fn seen() -> Option<&'static Seen> {
    static SEEN: OnceLock<Option<Seen>> = OnceLock::new();
    let seen = SEEN.get_or_init(|| match keel_ptx::texts() {
        Ok(_) => Some(Seen {
            record: Arc::default(),
            taken: Mutex::default(),
            cases: Mutex::default(),
        }),
        Err(reason) => {
            eprintln!("PTX is not run: {reason}");
            None
        }
    });
    seen.as_ref()
}

/// Whether every case is to run.
fn takes_all() -> bool {
    std::env::var_os("KEEL_PTX").is_some_and(|value| value == "all")
}

impl Seen {
    /// Whether a program has a kernel that too few cases were run of, or all are to run. Those it has count as taken.
    pub fn takes(&self, program: &Program) -> bool {
        let Ok(steps) = resolve(program) else {
            return false;
        };
        let launches = steps.iter().flat_map(|step| &step.launches);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_wanted = takes_all();
        for launch in launches.clone() {
            is_wanted |= taken
                .get(launch.kernel.name)
                .is_none_or(|times| *times < TIMES);
        }
        if is_wanted {
            for launch in launches {
                *taken.entry(launch.kernel.name).or_default() += 1;
            }
        }
        is_wanted
    }

    /// The ways a case is run: copies as late as they may be and warps upwards, or as early and downwards with approximate
    /// instructions as far off as they may be.
    pub fn ways(seed: u64) -> [Options; 2] {
        [
            Options::default(),
            Options {
                copies: CopyTiming::Early,
                runs_backwards: true,
                approximation: Approximation::Moved(seed as u32),
                ..Options::default()
            },
        ]
    }

    /// Adds what launches outside the cases showed.
    pub fn merge(&self, other: &Record) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.merge(other);
        drop(record);
        self.passed();
    }

    /// Notes that a case has passed.
    pub fn passed(&self) {
        let mut cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        *cases += 1;
        if let Some(path) = std::env::var_os("KEEL_PTX_RECORD") {
            let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            std::fs::write(&path, written(&record, *cases)).expect("the record can be written");
        }
    }
}

/// The record as lines of words.
fn written(record: &Record, cases: u64) -> String {
    let mut text = format!("cases {cases}\n");
    for (name, kernel) in &record.kernels {
        writeln!(
            text,
            "kernel {name} {} {} {} {} {:.3e} {}",
            kernel.launches,
            kernel.compared,
            kernel.exact,
            kernel.same_bits,
            kernel.largest_share,
            kernel.instructions
        )
        .expect("writing to a string cannot fail");
    }
    for form in &record.forms {
        writeln!(text, "form {form}").expect("writing to a string cannot fail");
    }
    text
}
