//! The time, behind one seam. A machine's clock is set back, jumps when the machine sleeps, and stands still under some
//! hypervisors; whatever a program reads of it goes through here, where a test can let all that happen.
//!
//! A [`Clock`] gives durations of its own making: time that passed between two looks at the source is added up, and time that
//! went backward counts as none. So no duration is negative, and the parts of a span never add up to more than the span.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from. Nothing is asked of it: it may stand still, jump and go backward.
pub trait TimeSource: Debug + Send + Sync {
    /// The time since some moment that stays the same, for durations.
    fn now(&self) -> Duration;

    /// The time since 1970 in UTC, for stamps; zero where the calendar says less.
    fn since_1970(&self) -> Duration;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemTimeSource {
    began: Instant,
}

impl Default for SystemTimeSource {
    fn default() -> SystemTimeSource {
        SystemTimeSource {
            began: Instant::now(),
        }
    }
}

impl TimeSource for SystemTimeSource {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn since_1970(&self) -> Duration {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.unwrap_or_default()
    }
}

/// A clock that never goes backward, whatever its source does. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Arc<dyn TimeSource>,
    passed: Arc<Mutex<Passed>>,
}

#[derive(Debug)]
struct Passed {
    /// What the source said last.
    last: Duration,
    /// All time that it moved forward by.
    sum: Duration,
}

impl Clock {
    /// A clock over `source`.
    pub fn over(source: Arc<dyn TimeSource>) -> Clock {
        let last = source.now();
        let sum = Duration::ZERO;
        Clock {
            source,
            passed: Arc::new(Mutex::new(Passed { last, sum })),
        }
    }

    /// Time that has passed since the clock was made.
    pub fn passed(&self) -> Duration {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.source.now();
        let moved = now.saturating_sub(passed.last);
        passed.last = now;
        passed.sum = passed.sum.saturating_add(moved);
        passed.sum
    }

    /// A span that begins now.
    pub fn start(&self) -> Stopwatch {
        Stopwatch {
            clock: self.clone(),
            began: self.passed(),
        }
    }

    /// The time since 1970 in UTC, as the source says: it may be less than it was.
    pub fn since_1970(&self) -> Duration {
        self.source.since_1970()
    }
}

impl Default for Clock {
    /// The clock of this machine.
    fn default() -> Clock {
        Clock::over(Arc::new(SystemTimeSource::default()))
    }
}

/// A span of time under way.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    clock: Clock,
    began: Duration,
}

impl Stopwatch {
    /// Time since it began, never less than it was.
    pub fn elapsed(&self) -> Duration {
        self.clock.passed() - self.began
    }

    /// The same in seconds: finite, and zero or more.
    pub fn seconds(&self) -> f64 {
        self.elapsed().as_secs_f64()
    }

    /// Begins the span again.
    pub fn restart(&mut self) {
        self.began = self.clock.passed();
    }
}

/// `amount` a second; 0, which stands for unknown, where the clock saw no time pass.
pub fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}
