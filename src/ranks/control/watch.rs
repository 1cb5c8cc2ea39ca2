//! What rank 0 knows of all ranks, and when it is too long since it heard of one, or since one did anything. No clock of its own:
//! the time is handed in, so that tests need not wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cause::{ANOTHER_RANK, Cause, named, placed};
use super::progress::{Doing, Phase, Wait};

/// How long is too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Between two signs of life of a rank.
    pub beat: Duration,
    /// Without a sign of life.
    pub silence: Duration,
    /// Until all ranks have found each other.
    pub joining: Duration,
    /// Without progress while loading.
    pub load: Duration,
    /// Without progress while saving.
    pub save: Duration,
    /// Without progress in a step, at least; where steps last longer, ten times their median.
    pub step: Duration,
    /// Over so long waits are compared, to tell who makes the others wait.
    pub comparing: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let seconds = Duration::from_secs;
        Patience {
            beat: seconds(1),
            silence: seconds(15),
            joining: seconds(300),
            load: seconds(600),
            save: seconds(1800),
            step: seconds(60),
            comparing: seconds(10),
        }
    }
}

/// A step may last this many times the median.
const STEPS: u32 = 10;

/// Steps of which the median is taken.
const RECENT: usize = 50;

/// One rank, as it was last heard of.
#[derive(Clone, Debug)]
struct Seen {
    heard: Instant,
    closed: Option<Instant>,
    has_left: bool,
    doing: Doing,
    moved: Instant,
    /// How long it had waited when the while under way began.
    waited_before: Duration,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Watch {
    patience: Patience,
    hosts: Vec<String>,
    ranks: Vec<Seen>,
    /// When the step that rank 0 is in began, and how long the last ones took.
    step_began: Instant,
    steps: VecDeque<Duration>,
    /// When the while began over which waits are compared, and whether all ranks were in steps then.
    while_began: Instant,
    all_stepped: bool,
}

impl Watch {
    /// All ranks of `hosts`, which have just been heard.
    pub fn new(patience: Patience, hosts: Vec<String>, now: Instant) -> Watch {
        let seen = Seen {
            heard: now,
            closed: None,
            has_left: false,
            doing: Doing::default(),
            moved: now,
            waited_before: Duration::ZERO,
        };
        Watch {
            patience,
            ranks: vec![seen; hosts.len()],
            hosts,
            step_began: now,
            steps: VecDeque::new(),
            while_began: now,
            all_stepped: false,
        }
    }

    /// A rank said anything.
    pub fn heard(&mut self, rank: usize, now: Instant) {
        self.ranks[rank].heard = now;
    }

    /// A rank said what it does.
    pub fn does(&mut self, rank: usize, doing: Doing, now: Instant) {
        self.heard(rank, now);
        let seen = &mut self.ranks[rank];
        let before = std::mem::replace(&mut seen.doing, doing);
        if (before.moves, before.waits_in) != (doing.moves, doing.waits_in) {
            seen.moved = now;
        }
        if rank == 0 && before.step != doing.step {
            if before.phase == Phase::Step || before.phase == Phase::Data {
                self.steps.push_back(now - self.step_began);
            }
            if self.steps.len() > RECENT {
                self.steps.pop_front();
            }
            self.step_began = now;
        }
    }

    /// A rank has no more to say, and nothing is wrong.
    pub fn left(&mut self, rank: usize) {
        self.ranks[rank].has_left = true;
    }

    /// A rank's connection ended.
    pub fn closed(&mut self, rank: usize, now: Instant) {
        self.ranks[rank].closed.get_or_insert(now);
    }

    /// Once a while has passed, how long each rank has waited for others in it, and how long it was. Nothing where a rank did
    /// anything but steps, in which all wait for one another.
    pub fn take_waits(&mut self, now: Instant) -> Option<(Vec<Duration>, Duration)> {
        let passed = now.saturating_duration_since(self.while_began);
        if passed < self.patience.comparing {
            return None;
        }
        self.while_began = now;
        let waits = self.ranks.iter_mut().map(|seen| {
            let before = std::mem::replace(&mut seen.waited_before, seen.doing.waited);
            seen.doing.waited.saturating_sub(before)
        });
        let waits: Vec<Duration> = waits.collect();
        let is_step = |seen: &Seen| seen.doing.phase == Phase::Step && !seen.has_left;
        let all_step = self.ranks.iter().all(is_step);
        let was_step = std::mem::replace(&mut self.all_stepped, all_step);
        (all_step && was_step).then_some((waits, passed))
    }

    /// The first thing that is wrong; `None` while nothing is.
    pub fn judge(&self, now: Instant) -> Option<Cause> {
        let all = self.ranks.len();
        self.gone(all, now)
            .or_else(|| self.silent(all, now))
            .or_else(|| self.stuck(now))
    }

    /// As [`Watch::judge`], at another rank than 0: of rank 0 alone, and whether it is there.
    pub fn judge_first(&self, now: Instant) -> Option<Cause> {
        self.gone(1, now).or_else(|| self.silent(1, now))
    }

    /// Begins to wait anew: nothing could be heard meanwhile.
    pub fn forgive(&mut self, now: Instant) {
        for seen in &mut self.ranks {
            (seen.heard, seen.moved) = (now, now);
        }
    }

    fn those(&self, is_so: impl Fn(&Seen) -> bool) -> Vec<usize> {
        let ranks = 0..self.ranks.len();
        ranks.filter(|rank| is_so(&self.ranks[*rank])).collect()
    }

    fn is_there(seen: &Seen) -> bool {
        !seen.has_left
    }

    fn end(&self, what: String) -> Cause {
        Cause {
            rank: None,
            sentence: what,
            code: ANOTHER_RANK,
        }
    }

    /// Of the first `among` ranks, those whose processes ended without a word.
    fn gone(&self, among: usize, now: Instant) -> Option<Cause> {
        let is_gone = |seen: &Seen| seen.closed.is_some() && Self::is_there(seen);
        let gone: Vec<usize> = (0..among)
            .filter(|rank| is_gone(&self.ranks[*rank]))
            .collect();
        let closed = gone.iter().filter_map(|rank| self.ranks[*rank].closed);
        // Others of the same host may follow at once: half a beat, and they are named together.
        let is_over = now.saturating_duration_since(closed.min()?) * 2 >= self.patience.beat;
        is_over.then(|| {
            let verb = if gone.len() == 1 { "is" } else { "are" };
            let place = self.doing(gone[0]);
            self.end(format!(
                "{} {verb} gone {place}",
                placed(&gone, &self.hosts)
            ))
        })
    }

    /// Of the first `among` ranks, those that say nothing although their connections are open: a host or a network that is lost, or
    /// a process that was stopped.
    fn silent(&self, among: usize, now: Instant) -> Option<Cause> {
        let silence = |rank: &usize| now.saturating_duration_since(self.ranks[*rank].heard);
        let there = (0..among).filter(|rank| Self::is_there(&self.ranks[*rank]));
        let longest = there.clone().map(|rank| silence(&rank)).max()?;
        if longest < self.patience.silence {
            return None;
        }
        // What fell silent together is named together, and nobody who was heard just now however short the patience.
        let together = self.patience.silence.saturating_sub(self.patience.beat * 2);
        let together = together.max(self.patience.silence / 2);
        let silent: Vec<usize> = there.filter(|rank| silence(rank) >= together).collect();
        Some(self.end(format!(
            "nothing was heard of {} for {}, {}",
            placed(&silent, &self.hosts),
            seconds(longest),
            self.doing(silent[0]),
        )))
    }

    /// Ranks that live but do not go on, while others wait for them.
    fn stuck(&self, now: Instant) -> Option<Cause> {
        let still = |seen: &Seen| now.saturating_duration_since(seen.moved);
        let is_waiting = |seen: &Seen| Self::is_there(seen) && seen.doing.waits_in.is_some();
        let waiting = self.those(is_waiting);
        let is_still = |seen: &Seen, for_long: &dyn Fn(Duration) -> Duration| {
            let limit = self.limit(seen.doing.phase);
            Self::is_there(seen) && !is_waiting(seen) && still(seen) >= for_long(limit)
        };
        if self.ranks.iter().any(|seen| is_still(seen, &|limit| limit)) {
            // What came to stand still together is named together: in a collective on their devices, of which the host sees
            // nothing, no rank is known to wait for another.
            let together = |limit: Duration| {
                let less = (limit / 10).max(self.patience.beat * 2);
                limit.saturating_sub(less).max(limit / 2)
            };
            let stuck = self.those(|seen| is_still(seen, &together));
            let longest = stuck.iter().map(|rank| still(&self.ranks[*rank])).max()?;
            let (they, time) = (placed(&stuck, &self.hosts), seconds(longest));
            let others = match self.waits(&waiting) {
                Some(waits) => format!("; {waits}"),
                None => String::new(),
            };
            let place = self.doing(stuck[0]);
            return Some(self.end(format!("{they} did nothing for {time}, {place}{others}")));
        }
        // All wait, and nothing comes: not for one another, where they wait in the same place.
        let present = self.those(Self::is_there);
        let shortest = present.iter().map(|rank| still(&self.ranks[*rank])).min()?;
        let is_hung = waiting.len() == present.len() && shortest >= self.limit(Phase::Step);
        is_hung.then(|| {
            let (waits, time) = (self.waits(&present).unwrap_or_default(), seconds(shortest));
            self.end(format!(
                "{waits} for {time} and none goes on, {}",
                self.doing(present[0])
            ))
        })
    }

    /// Where each of these ranks waits: `rank 1 waits in collective 3, ranks 0, 2 wait in collective 4`.
    fn waits(&self, ranks: &[usize]) -> Option<String> {
        let place = |rank: &usize| self.ranks[*rank].doing.waits_in;
        let mut places: Vec<Wait> = ranks.iter().filter_map(place).collect();
        places.sort_unstable();
        places.dedup();
        let shown = places.iter().map(|one| {
            let there: Vec<usize> = ranks
                .iter()
                .copied()
                .filter(|rank| place(rank) == Some(*one))
                .collect();
            let verb = if there.len() == 1 { "waits" } else { "wait" };
            format!("{} {verb} in {one}", named(&there))
        });
        let shown: Vec<String> = shown.collect();
        (!shown.is_empty()).then(|| shown.join(", "))
    }

    /// `at step 12, while it computes`.
    fn doing(&self, rank: usize) -> String {
        let Doing { phase, step, .. } = self.ranks[rank].doing;
        match phase {
            Phase::Load => "before the first step, while it loads".to_owned(),
            phase => format!("at step {step}, while it {}", phase.doing()),
        }
    }

    fn limit(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Load => self.patience.load,
            Phase::Save | Phase::Evaluate => self.patience.save,
            Phase::Data | Phase::Step => {
                let mut steps: Vec<Duration> = self.steps.iter().copied().collect();
                steps.sort_unstable();
                let median = steps.get(steps.len() / 2).copied().unwrap_or_default();
                self.patience.step.max(median * STEPS)
            }
        }
    }
}

/// `15 s`, and with a fraction below ten.
pub(crate) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    }
}
