//! The one thread that owns the programs. It answers what waits, in its order, side by side as far as there are rows, and
//! never waits for a reader: what it makes is handed over, and who is gone is found out at the next token.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::answer_text::AnswerText;
use keel_base::error::Result;
use keel_eval::{Sampling, StreamPrompt, Streams, WordLook};
use keel_train::EvalRun;

/// What waits for the engine.
pub(crate) enum Job {
    /// An answer.
    Answer(AnswerJob),
    /// A look at one.
    Look(LookJob),
}

/// An answer that is wanted.
pub(crate) struct AnswerJob {
    pub prompt: StreamPrompt,
    pub sampling: Sampling,
    /// Most tokens of it.
    pub most_tokens: usize,
    pub stops: Vec<String>,
    pub hears: UnboundedSender<Heard>,
}

/// A look that is wanted at `answer` behind `prompt`.
pub(crate) struct LookJob {
    pub prompt: StreamPrompt,
    pub answer: Vec<i32>,
    pub hears: oneshot::Sender<Result<WordLook>>,
}

/// What is heard of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// More of its text.
    Text(String),
    /// It is whole.
    Ended(Ended),
    /// It failed, and why.
    Failed(String),
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// OpenAI's word: `stop`, or `length` where there was no room for more.
    pub finish: &'static str,
    /// Tokens of the answer, the one that ended it among them.
    pub tokens: usize,
    /// Tokens of the prompt that had been read before.
    pub reused: usize,
}

/// An answer under way.
struct Answering {
    hears: UnboundedSender<Heard>,
    text: AnswerText,
    ids: Vec<i32>,
    most_tokens: usize,
    reused: usize,
}

impl Answering {
    /// Takes a further token; whether the answer goes on.
    fn take(&mut self, run: &EvalRun, token: i32) -> bool {
        let is_end = token == run.end_token();
        if !is_end {
            self.ids.push(token);
        }
        let is_full = self.ids.len() >= self.most_tokens;
        let is_last = is_end || is_full;
        let growth = self.text.grow(&run.text_of(&self.ids), is_last);
        let mut is_heard = true;
        if !growth.text.is_empty() {
            is_heard = self.hears.send(Heard::Text(growth.text)).is_ok();
        }
        if !(is_last || growth.is_stopped) {
            return is_heard && !self.hears.is_closed();
        }
        let ended = Ended {
            finish: match is_end || growth.is_stopped {
                true => "stop",
                false => "length",
            },
            tokens: self.ids.len() + usize::from(is_end),
            reused: self.reused,
        };
        // Nobody may listen any more, which is no reason to stop for the others.
        let _ = self.hears.send(Heard::Ended(ended));
        false
    }

    fn fail(&self, problem: &str) {
        let _ = self.hears.send(Heard::Failed(problem.to_owned()));
    }
}

/// Answers of one kind, by the likeliest tokens or by drawn ones, each with its row.
struct Lane {
    streams: Streams,
    answers: Vec<Option<Answering>>,
}

impl Lane {
    fn new(run: &EvalRun, rows: usize, is_sampled: bool) -> Result<Lane> {
        Ok(Lane {
            streams: run.streams(rows, is_sampled)?,
            answers: (0..rows).map(|_| None).collect(),
        })
    }

    fn is_idle(&self) -> bool {
        self.answers.iter().all(Option::is_none)
    }

    fn begin(&mut self, run: &EvalRun, job: AnswerJob) {
        if job.hears.is_closed() {
            return;
        }
        let mut answering = Answering {
            hears: job.hears,
            text: AnswerText::new(job.stops),
            ids: Vec::new(),
            most_tokens: job.most_tokens,
            reused: 0,
        };
        match self.streams.begin(&job.prompt, job.sampling) {
            Err(problem) => answering.fail(&problem.to_string()),
            Ok(begun) => {
                answering.reused = begun.reused;
                match answering.take(run, begun.token) {
                    true => self.answers[begun.row] = Some(answering),
                    false => self.streams.end(begun.row),
                }
            }
        }
    }

    fn step(&mut self, run: &EvalRun) {
        match self.streams.step() {
            Ok(next) => {
                for (row, token) in next {
                    let answering = self.answers[row].as_mut();
                    if !answering.is_some_and(|answering| answering.take(run, token)) {
                        self.answers[row] = None;
                        self.streams.end(row);
                    }
                }
            }
            Err(problem) => {
                for (row, answering) in self.answers.iter_mut().enumerate() {
                    if let Some(answering) = answering.take() {
                        answering.fail(&problem.to_string());
                        self.streams.end(row);
                    }
                }
            }
        }
    }
}

/// See the module's documentation.
pub(crate) struct AnswerEngine {
    run: Arc<EvalRun>,
    rows: usize,
    greedy: Lane,
    /// Loaded when an answer is first drawn.
    sampled: Option<Lane>,
}

impl AnswerEngine {
    /// Loads what answers by the likeliest tokens, `rows` at once.
    pub fn new(run: Arc<EvalRun>, rows: usize) -> Result<AnswerEngine> {
        Ok(AnswerEngine {
            greedy: Lane::new(&run, rows, false)?,
            sampled: None,
            run,
            rows,
        })
    }

    /// Answers until nobody can ask any more and all answers are given.
    pub fn serve(mut self, jobs: &Receiver<Job>) {
        let mut waiting: VecDeque<Job> = VecDeque::with_capacity(1);
        loop {
            let is_idle = self.greedy.is_idle() && self.sampled.as_ref().is_none_or(Lane::is_idle);
            if waiting.is_empty() {
                let job = match is_idle {
                    true => jobs.recv().map_err(|_| TryRecvError::Disconnected),
                    false => jobs.try_recv(),
                };
                match job {
                    Ok(job) => waiting.push_back(job),
                    Err(TryRecvError::Disconnected) if is_idle => return,
                    Err(_) => {}
                }
            }
            // One at most before the answers under way go on: a prompt takes as long as many of their tokens.
            if let Some(job) = waiting.pop_front()
                && let Some(job) = self.begin(job)
            {
                waiting.push_front(job);
            }
            self.greedy.step(&self.run);
            if let Some(sampled) = &mut self.sampled {
                sampled.step(&self.run);
            }
        }
    }

    /// Begins a job; gives it back where all rows are taken.
    fn begin(&mut self, job: Job) -> Option<Job> {
        match job {
            Job::Look(job) => {
                let streams = &mut self.greedy.streams;
                let look = self.run.look(streams, &job.prompt, &job.answer);
                let _ = job.hears.send(look);
                None
            }
            Job::Answer(job) => {
                let run = self.run.clone();
                match self.lane(&job) {
                    Err(problem) => {
                        let _ = job.hears.send(Heard::Failed(problem.to_string()));
                        None
                    }
                    Ok(lane) if !lane.streams.has_room() => Some(Job::Answer(job)),
                    Ok(lane) => {
                        lane.begin(&run, job);
                        None
                    }
                }
            }
        }
    }

    fn lane(&mut self, job: &AnswerJob) -> Result<&mut Lane> {
        if job.sampling == Sampling::Greedy {
            return Ok(&mut self.greedy);
        }
        if self.sampled.is_none() {
            self.sampled = Some(Lane::new(&self.run, self.rows, true)?);
        }
        Ok(self.sampled.as_mut().expect("it was just loaded"))
    }
}
