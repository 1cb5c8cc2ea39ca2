//! A thread beside the engines that knows which rank is where, who lives, and what went wrong first.
//!
//! Every rank has one TCP connection to rank 0. Over it go signs of life with what the rank is doing, votes, and the first
//! cause of an end, which rank 0 tells to all. Engines hang or fail in words of their own when a rank dies; this channel is how all
//! ranks end within a stated time, with one sentence that names the rank, its host and the cause. Nothing is recovered here:
//! a launcher starts the job again.

mod alike;
mod cause;
mod door;
mod message;
mod progress;
mod straggler;
mod watch;
mod watched;

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use self::message::Message;
use crate::launch::Place;
use crate::{Votes, World};
use keel_base::error::{Error, Result};

pub use alike::{Fact, check_alike};
pub(crate) use cause::named;
pub use cause::{ANOTHER_RANK, COPIES_DIFFER, Cause, NOT_ALIKE};
pub use door::Door;
pub(crate) use door::machine;
pub use progress::{Doing, Phase, Progress, Wait};
pub use straggler::{Straggler, Stragglers, slowest};
pub use watch::{Patience, Watch};

/// What is done when the job ends for another rank's sake: says the cause and ends the process. Called once, on a thread of
/// the channel, with the cause and the exit code.
pub type End = Box<dyn Fn(&Cause, i32) + Send + Sync>;

/// Says the cause on the error stream and ends the process without running anything else: destructors of engines hang when a
/// peer is gone.
pub fn end_process(cause: &Cause, code: i32) {
    let remedy = match code {
        ANOTHER_RANK => "; all ranks end; go on from the newest checkpoint with --resume",
        _ => "",
    };
    let _ = writeln!(std::io::stderr(), "error: {}{remedy}", cause.sentence);
    signal_hook::low_level::exit(code)
}

/// How long a rank that has told the others why it ends may take to end by itself.
const OWN_END: Duration = Duration::from_secs(5);

/// How long a rank may take to take in a cause, and a message before it to be written.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long rank 0 waits for the others to hear of a cause.
const FAREWELL: Duration = Duration::from_secs(1);

/// One rank's end of the channel.
pub struct Control {
    shared: Arc<Shared>,
    asked: AtomicU64,
}

struct Shared {
    world: World,
    hosts: Vec<String>,
    patience: Patience,
    progress: Arc<Progress>,
    /// Rank 0's connections to the others, in their order; the others' one to rank 0.
    links: Vec<Link>,
    state: Mutex<State>,
    changed: Condvar,
    end: End,
}

/// One connection. Messages are written whole.
struct Link {
    rank: usize,
    stream: TcpStream,
    writing: Mutex<()>,
}

struct State {
    watch: Watch,
    cause: Option<Cause>,
    /// Whether the cause went out to all that this rank reaches.
    is_told: bool,
    /// Whether this rank has nothing more to say.
    has_left: bool,
    /// Whether [`End`] has come back.
    has_ended: bool,
    /// Connections that are closed.
    closed: usize,
    /// Votes under way, at rank 0.
    rounds: HashMap<u64, Round>,
    /// Votes that are complete.
    answers: HashMap<u64, Vec<Vec<u8>>>,
    /// Who makes the others wait, at rank 0, and what was not said of it yet.
    stragglers: Stragglers,
    warnings: Vec<String>,
}

/// A vote that parts come in for.
struct Round {
    what: String,
    first: usize,
    parts: Vec<Option<Vec<u8>>>,
}

impl Control {
    /// Meets the other ranks at `door`; `host` is what sentences call this rank's place.
    ///
    /// # Errors
    /// [`Error::Stopped`] when ranks do not come in time, or end meanwhile; [`Error::Content`] when they were not started alike.
    pub fn join(
        place: &Place,
        door: Door,
        host: &str,
        patience: Patience,
        end: End,
    ) -> Result<Control> {
        let met = door::meet(place, door, host, &patience)?;
        let local = |host: &&String| machine(host) == machine(&met.hosts[place.rank]);
        let local_ranks = met.hosts.iter().filter(local).count();
        let now = Instant::now();
        let shared = Arc::new(Shared {
            world: place.world(local_ranks),
            patience,
            progress: Arc::default(),
            links: met.links,
            state: Mutex::new(State {
                watch: Watch::new(patience, met.hosts.clone(), now),
                cause: None,
                is_told: false,
                has_left: false,
                has_ended: false,
                closed: 0,
                rounds: HashMap::new(),
                answers: HashMap::new(),
                stragglers: Stragglers::default(),
                warnings: Vec::new(),
            }),
            hosts: met.hosts,
            changed: Condvar::new(),
            end,
        });
        for (index, reader) in met.readers.into_iter().enumerate() {
            let shared = shared.clone();
            start("keel-ranks-hear", move || shared.hear(index, reader))?;
        }
        let (beating, keeping) = (shared.clone(), shared.clone());
        start("keel-ranks-beat", move || beating.beat())?;
        start("keel-ranks-keep", move || keeping.keep())?;
        Ok(Control {
            shared,
            asked: AtomicU64::new(0),
        })
    }

    /// What each rank's place is called, by rank.
    pub fn hosts(&self) -> &[String] {
        &self.shared.hosts
    }

    /// Where this rank notes what it does.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.shared.progress
    }

    /// Waits a little for a cause that another rank may be about to name; where one comes, the process ends here. For errors
    /// of engines: that a peer is gone is better said by this channel, which knows who and where.
    pub fn hear_first(&self) {
        let shared = &self.shared;
        // A closed connection is judged after half a beat.
        let until = Instant::now() + shared.patience.beat * 2;
        let mut state = shared.lock();
        while state.cause.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = shared.wait(state, left);
        }
        while !state.has_ended {
            state = shared.wait(state, OWN_END);
        }
    }

    /// What ended the job, where something did.
    pub fn cause(&self) -> Option<Cause> {
        self.shared.lock().cause.clone()
    }

    /// Ends this rank's part of a job that went well, together with all others.
    ///
    /// # Errors
    /// As [`Votes::gather`].
    pub fn leave(&self) -> Result<()> {
        self.gather("the end", &[])?;
        self.shared.lock().has_left = true;
        self.shared.changed.notify_all();
        for link in &self.shared.links {
            link.send(&Message::Bye);
        }
        Ok(())
    }

    /// As [`Votes::give_up`], for a rank that ends with `code`. Where it is refused all are: starting again would change nothing.
    pub fn give_up_with(&self, problem: &str, code: i32) {
        let rank = self.shared.world.rank;
        self.shared.settle(Cause {
            rank: Some((rank, code)),
            sentence: format!("rank {rank} ({}) ended: {problem}", self.shared.hosts[rank]),
            code: match code {
                NOT_ALIKE => NOT_ALIKE,
                _ => ANOTHER_RANK,
            },
        });
    }
}

impl Drop for Control {
    /// A rank that ends without leaving is gone to the others at once.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let was_told = state.has_left || state.cause.is_some();
        state.has_left = true;
        drop(state);
        self.shared.changed.notify_all();
        if !was_told {
            self.shared.close();
        }
    }
}

impl Votes for Control {
    fn world(&self) -> World {
        self.shared.world
    }

    fn gather(&self, what: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let shared = &self.shared;
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        if shared.world.is_first() {
            shared.hand_in(0, number, what, own.to_vec());
        } else {
            shared.links[0].send(&Message::Part {
                number,
                what: what.to_owned(),
                bytes: own.to_vec(),
            });
        }
        let place = Wait::Vote(number + 1);
        shared.progress.waiting(place, || shared.answer(number))
    }

    fn give_up(&self, problem: &str) {
        self.give_up_with(problem, 1);
    }

    fn note(&self, phase: Phase, step: Option<u64>) {
        self.shared.progress.enter(phase, step);
    }

    fn named(&self, ranks: &[usize]) -> String {
        cause::placed(ranks, &self.shared.hosts)
    }

    fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().warnings)
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    // What these threads do needs little room, and rank 0 has one for every other rank.
    let builder = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(256 * 1024);
    let started = builder.spawn(work);
    started.map(drop).map_err(|source| {
        Error::stopped(
            "the control channel",
            format!("no thread can be started: {source}"),
            "raise the limit on threads (ulimit -u)",
        )
    })
}

impl Link {
    /// Writes a message, or closes the connection of a rank that does not take it: its reader notices.
    fn send(&self, message: &Message) {
        let guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(message, guard);
    }

    /// As [`Link::send`], but not behind a message that is stuck. Returns whether it was written.
    fn send_now(&self, message: &Message) -> bool {
        let guard = match self.writing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        self.write(message, guard);
        true
    }

    fn write(&self, message: &Message, _writing: MutexGuard<'_, ()>) {
        if message.write(&mut &self.stream).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// The last message: a rank that does not take it in time must not keep the others from hearing it. It waits for a message
    /// that is being written, such as a sign of life, which is over at once unless that rank takes nothing.
    fn send_last(&self, message: &Message) {
        let _ = self.stream.set_write_timeout(Some(LAST_WORD));
        let until = Instant::now() + LAST_WORD;
        while !self.send_now(message) {
            if Instant::now() >= until {
                let _ = self.stream.shutdown(Shutdown::Both);
                return;
            }
            thread::sleep(LAST_WORD / 100);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn close(&self) {
        for link in &self.links {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }

    /// Reads what comes over one connection until it ends.
    fn hear(&self, index: usize, mut reader: BufReader<TcpStream>) {
        let rank = self.links[index].rank;
        // Bytes that are no message end it as a close does: whoever sends them is no rank any more.
        while let Ok(Some(message)) = Message::read(&mut reader) {
            self.take(rank, message);
        }
        let mut state = self.lock();
        state.closed += 1;
        state.watch.closed(rank, Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    fn take(&self, rank: usize, message: Message) {
        let now = Instant::now();
        match message {
            Message::Beat(doing) => self.lock().watch.does(rank, doing, now),
            Message::Part {
                number,
                what,
                bytes,
            } => {
                self.lock().watch.heard(rank, now);
                self.hand_in(rank, number, &what, bytes);
            }
            Message::Parts { number, parts } => {
                let mut state = self.lock();
                state.watch.heard(rank, now);
                state.answers.insert(number, parts);
                drop(state);
                self.changed.notify_all();
            }
            Message::End(cause) => self.settle(cause),
            Message::Bye => self.lock().watch.left(rank),
            // Only ranks that meet say these; a second one is as good as a sign of life.
            Message::Hello(_) | Message::Welcome(_) => self.lock().watch.heard(rank, now),
        }
    }

    /// At rank 0: a rank's part of a vote.
    fn hand_in(&self, rank: usize, number: u64, what: &str, part: Vec<u8>) {
        let mut state = self.lock();
        let ranks = self.world.ranks;
        let round = state.rounds.entry(number).or_insert_with(|| Round {
            what: what.to_owned(),
            first: rank,
            parts: vec![None; ranks],
        });
        if round.what != what {
            let sentence = format!(
                "{} came to {what} where {} came to {}",
                cause::placed(&[rank], &self.hosts),
                cause::placed(&[round.first], &self.hosts),
                round.what
            );
            drop(state);
            self.settle(Cause {
                rank: None,
                sentence,
                code: NOT_ALIKE,
            });
            return;
        }
        round.parts[rank] = Some(part);
        if round.parts.iter().any(Option::is_none) {
            return;
        }
        let round = state.rounds.remove(&number).expect("it was just filled");
        let parts: Vec<Vec<u8>> = round.parts.into_iter().flatten().collect();
        drop(state);
        let message = Message::Parts { number, parts };
        for link in &self.links {
            link.send(&message);
        }
        // Only now: once rank 0 knows the outcome it may leave and end, and the others must have been told before.
        if let Message::Parts { number, parts } = message {
            self.lock().answers.insert(number, parts);
        }
        self.changed.notify_all();
    }

    /// Waits for the outcome of a vote.
    fn answer(&self, number: u64) -> Result<Vec<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            if let Some(parts) = state.answers.remove(&number) {
                return Ok(parts);
            }
            if let Some(cause) = state.cause.clone()
                && state.has_ended
            {
                return Err(cause.error());
            }
            state = self.wait(state, self.patience.silence);
        }
    }

    /// Takes a cause, where there is none yet, and tells it to those that this rank reaches.
    fn settle(&self, cause: Cause) {
        let mut state = self.lock();
        if state.cause.is_some() || state.has_left {
            return;
        }
        state.cause = Some(cause.clone());
        drop(state);
        for link in &self.links {
            link.send_last(&Message::End(cause.clone()));
        }
        self.lock().is_told = true;
        self.changed.notify_all();
    }

    /// Whether the channel has nothing to watch any more.
    fn is_over(state: &State) -> bool {
        state.cause.is_some() || state.has_left
    }

    /// Gives signs of life, until this rank leaves or the job ends. A thread of its own: a rank that takes nothing may hold it up.
    fn beat(&self) {
        let mut state = self.lock();
        while !Self::is_over(&state) {
            drop(state);
            let message = Message::Beat(self.progress.doing());
            for link in &self.links {
                link.send_now(&message);
            }
            let next = Instant::now() + self.patience.beat;
            state = self.lock();
            while !Self::is_over(&state) && Instant::now() < next {
                state = self.wait(state, next.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Looks for the others' signs of life, until this rank leaves or the job ends.
    fn keep(&self) {
        let mut last = Instant::now();
        let mut state = self.lock();
        while !Self::is_over(&state) {
            state = self.wait(state, self.patience.beat / 4);
            let now = Instant::now();
            // A rank that was stopped itself has heard nothing, and that is nobody's fault.
            if now - last > self.patience.silence / 2 {
                state.watch.forgive(now);
            }
            last = now;
            let found = if self.world.is_first() {
                state.watch.does(0, self.progress.doing(), now);
                self.look_for_stragglers(&mut state, now);
                state.watch.judge(now)
            } else {
                state.watch.judge_first(now)
            };
            if let Some(cause) = found {
                drop(state);
                self.settle(cause);
                state = self.lock();
            }
        }
        let cause = state.cause.clone();
        // Whoever found the cause may still be telling it, and connections that are closed before lose it.
        while cause.is_some() && !state.is_told {
            state = self.wait(state, LAST_WORD);
        }
        drop(state);
        if let Some(cause) = cause {
            self.end_with(&cause);
        }
    }

    fn look_for_stragglers(&self, state: &mut State, now: Instant) {
        let Some((waits, time)) = state.watch.take_waits(now) else {
            return;
        };
        if let Some(Straggler { rank, by }) = state.stragglers.note(&waits, time) {
            let share = 100.0 * by.as_secs_f64() / time.as_secs_f64();
            let who = cause::placed(&[rank], &self.hosts);
            let line = format!("the other ranks wait for {who}: {share:.0} % of their time");
            state.warnings.push(line);
        }
    }

    /// The end: rank 0 sees to it that all have heard, a rank that failed by itself may say so, then nobody waits any longer.
    fn end_with(&self, cause: &Cause) {
        let rank = self.world.rank;
        let own = cause.rank.is_some_and(|(failed, _)| failed == rank);
        let patience = if own {
            OWN_END
        } else if self.world.is_first() {
            FAREWELL
        } else {
            Duration::ZERO
        };
        let until = Instant::now() + patience;
        for link in &self.links {
            let _ = link.stream.shutdown(Shutdown::Write);
        }
        let mut state = self.lock();
        while (own || state.closed < self.links.len()) && !(own && state.has_left) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.wait(state, left);
        }
        let has_left = own && state.has_left;
        drop(state);
        if !has_left {
            (self.end)(cause, cause.code_of(rank));
        }
        self.lock().has_ended = true;
        self.changed.notify_all();
        self.close();
    }
}

impl Cause {
    /// As an error, for callers that are still there.
    pub fn error(&self) -> Error {
        let what = "training over many ranks";
        if self.code == NOT_ALIKE {
            return Error::content(what, &self.sentence, "start all ranks alike");
        }
        let remedy = "mend its cause and go on from the newest checkpoint with --resume";
        Error::stopped(what, &self.sentence, remedy)
    }
}
