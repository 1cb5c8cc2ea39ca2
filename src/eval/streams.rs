//! Answers that are generated side by side and begin and end when they like: each has a row of one program, which reads one
//! more token of all of them at a time. What a row has read stays in its cache when its answer ends, so that a conversation
//! that goes on, or a further question about the same images, is read from where it parts from it.

use std::sync::Arc;

use super::context::{EvalContext, plan_forward};
use super::generation::{PromptImage, Sampling, draw_token, seen_up_to};
use keel_base::error::{Error, Result};
use keel_base::random::{Purpose, Stream};
use keel_data::batch::BatchShape;
use keel_data::image_slots::{mark_places, place};
use keel_data::tiles::Tiling;
use keel_engine::executor::{Executor, Session};
use keel_engine::program::Program;
use keel_engine::tape::{Arena, CompileTarget};
use keel_model::{
    ModelConfig, ModelInput, NextToken, cached_rows, record_next_token, record_prompt,
};

/// Tokens of a context for each token that may be read alone instead of reading the whole prompt anew: a pass over a prompt
/// computes all its places, and one more token reads all weights from memory.
const PLACES_A_TOKEN: usize = 8;

/// Programs that read prompts, kept at once: for one image, and for the last other number of images.
const PROMPT_PROGRAMS: usize = 2;

/// The layers' inputs in a program that reads prompts, [1, T, D].
const EMBEDDED: &str = "language.inputs";

/// The sizes and the choice of tokens of [`Streams`].
#[derive(Clone, Copy, Debug)]
pub struct StreamShape {
    /// Answers at once.
    pub rows: usize,
    /// Tokens T of a row.
    pub tokens: usize,
    /// Tiles that an image may be cut into.
    pub tiles: usize,
    /// Whether tokens are drawn; else the likeliest is taken.
    pub is_sampled: bool,
}

/// What an answer begins with.
#[derive(Clone, Debug)]
pub struct StreamPrompt {
    /// The ids of the conversation so far.
    pub ids: Vec<i32>,
    /// The images in it; none in a conversation about nothing to see.
    pub shown: Option<Arc<PromptImage>>,
}

/// An answer that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its row.
    pub row: usize,
    /// Its first token.
    pub token: i32,
    /// Tokens of its prompt that a row had read already.
    pub reused: usize,
}

/// One row.
struct Row {
    /// The ids whose keys and values lie in the cache, from the first place on.
    read: Vec<i32>,
    shown: Option<Arc<PromptImage>>,
    /// The token that is read next; nothing where no answer is under way.
    next: Option<i32>,
    sampling: Sampling,
    draws: Stream,
    /// When it was last taken, counted in answers.
    taken: u64,
}

/// What the model made of a conversation, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Queries, keys and values after norm and rotation, [T, (H+2Hk)·D] of each layer.
    pub attended: Vec<Vec<f32>>,
    /// What the first layer is given, [T, D]: embeddings of tokens, and visual tokens in their places.
    pub embedded: Vec<f32>,
}

/// See the module's documentation.
pub struct Streams {
    executor: Arc<dyn Executor>,
    config: ModelConfig,
    layout: Arc<keel_engine::tape::ParameterLayout>,
    target: CompileTarget,
    next: NextToken,
    /// Of one row.
    shape: BatchShape,
    /// Programs that read a prompt, by the tiles or further images that they have room for; the last used one is last.
    prompts: Vec<(usize, Box<dyn Session>)>,
    step: Box<dyn Session>,
    rows: Vec<Row>,
    taken: u64,
    pad: i32,
}

impl Streams {
    /// Plans and loads the programs of `executor`, the context's.
    ///
    /// # Errors
    /// Whatever recording or loading reports.
    pub fn new(
        context: EvalContext<'_>,
        executor: Arc<dyn Executor>,
        sizes: StreamShape,
    ) -> Result<Streams> {
        let target = executor.compile_target();
        let next = match sizes.is_sampled {
            false => NextToken::Likeliest,
            true => NextToken::Logits,
        };
        let (config, layout) = (context.config, context.layout);
        let shape = context.batch_shape(1, sizes.tokens, 1);
        let together = context.batch_shape(sizes.rows, sizes.tokens, 1);
        let step = plan_forward(layout, target, Vec::new(), |tape| {
            record_next_token(tape, config, &together, next)
        })?;
        let row = |_| Row {
            read: Vec::new(),
            shown: None,
            next: None,
            sampling: Sampling::Greedy,
            draws: Stream::new(0, Purpose::Evaluation, 3, 0),
            taken: 0,
        };
        let mut streams = Streams {
            step: executor.load(step)?,
            executor,
            config: config.clone(),
            layout: layout.clone(),
            target,
            next,
            shape,
            prompts: Vec::new(),
            rows: (0..sizes.rows).map(row).collect(),
            taken: 0,
            pad: context.tokenizer.pad(),
        };
        streams.ready_prompts(sizes.tiles)?;
        Ok(streams)
    }

    /// Whether an answer could begin.
    pub fn has_room(&self) -> bool {
        self.rows.iter().any(|row| row.next.is_none())
    }

    /// Begins an answer. The first token is drawn here: `caption` and a benchmark draw the same ones from the same seed.
    ///
    /// # Errors
    /// [`Error::Setting`] when no row is free or the prompt is empty or leaves no place; whatever the sessions report.
    pub fn begin(&mut self, prompt: &StreamPrompt, sampling: Sampling) -> Result<Begun> {
        let tokens = self.shape.tokens;
        if prompt.ids.is_empty() || prompt.ids.len() >= tokens {
            let want = format!("1 to {} tokens", tokens - 1);
            return Err(Error::setting("prompt", want, prompt.ids.len()));
        }
        let Some((row, known)) = self.choose_row(prompt) else {
            let want = format!("at most {} at once", self.rows.len());
            return Err(Error::setting("answers", want, "one more"));
        };
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Random { seed, .. } => seed,
        };
        self.taken += 1;
        let held = &mut self.rows[row];
        held.taken = self.taken;
        held.sampling = sampling;
        held.draws = Stream::new(seed, Purpose::Evaluation, 3, 0);
        held.shown = prompt.shown.clone();
        let left = prompt.ids.len() - known;
        let is_near = left * PLACES_A_TOKEN <= tokens;
        let reused = if known > 0 && is_near { known } else { 0 };
        // What fails on the way leaves a row that has read nothing.
        let before = std::mem::take(&mut self.rows[row].read);
        let token = if reused > 0 {
            self.rows[row].read = before[..reused].to_vec();
            self.read_on(row, &prompt.ids[reused..])?
        } else {
            self.read_prompt(row, prompt)?
        };
        self.rows[row].next = Some(token);
        Ok(Begun { row, token, reused })
    }

    /// Reads the last token of every answer that is under way: the next one of each, by its row.
    ///
    /// # Errors
    /// [`Error::Setting`] when a row is full; whatever the session reports.
    pub fn step(&mut self) -> Result<Vec<(usize, i32)>> {
        let busy: Vec<usize> = (0..self.rows.len())
            .filter(|row| self.rows[*row].next.is_some())
            .collect();
        if busy.is_empty() {
            return Ok(Vec::new());
        }
        self.run_step(&busy)?;
        let mut next = Vec::with_capacity(busy.len());
        let chosen = self.choose(&busy, false)?;
        for (row, token) in busy.into_iter().zip(chosen) {
            self.rows[row].next = Some(token);
            next.push((row, token));
        }
        Ok(next)
    }

    /// Ends the answer of a row, which keeps what it has read.
    pub fn end(&mut self, row: usize) {
        self.rows[row].next = None;
    }

    /// What the model makes of `prompt`, for who wants to look at it. Rows keep what they have read.
    ///
    /// # Errors
    /// As [`Streams::begin`].
    pub fn look(&mut self, prompt: &StreamPrompt) -> Result<Reading> {
        let session = self.run_prompt(prompt)?;
        let attended = (0..session.0).map(|layer| session.1.read_f32(&cached_rows(layer)));
        Ok(Reading {
            attended: attended.collect::<Result<_>>()?,
            embedded: session.1.read_f32(EMBEDDED)?,
        })
    }

    /// The free row that has read most of `prompt`, and how many of its tokens; else the one that nobody took for the longest
    /// time. The last token is always read: what follows it is asked for.
    fn choose_row(&self, prompt: &StreamPrompt) -> Option<(usize, usize)> {
        let known = |row: &Row| {
            let is_same = match (&row.shown, &prompt.shown) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
                (None, None) => true,
                _ => false,
            };
            let pairs = row.read.iter().zip(&prompt.ids[..prompt.ids.len() - 1]);
            match is_same {
                true => pairs.take_while(|(one, other)| one == other).count(),
                false => 0,
            }
        };
        let free = self.rows.iter().enumerate();
        let free = free.filter(|(_, row)| row.next.is_none());
        free.map(|(index, row)| (index, known(row), row.taken))
            .max_by_key(|(_, known, taken)| (*known, std::cmp::Reverse(*taken)))
            .map(|(index, known, _)| (index, known))
    }

    /// Reads `ids` behind what row `row` has read, token by token; the token that follows them.
    fn read_on(&mut self, row: usize, ids: &[i32]) -> Result<i32> {
        for id in ids {
            self.rows[row].next = Some(*id);
            let outcome = self.run_step(&[row]);
            self.rows[row].next = None;
            outcome?;
        }
        Ok(self.choose(&[row], false)?[0])
    }

    /// Reads a whole prompt into the cache of row `row`; the token that follows it.
    fn read_prompt(&mut self, row: usize, prompt: &StreamPrompt) -> Result<i32> {
        let (layers, session) = self.run_prompt(prompt)?;
        let caches: Vec<Vec<f32>> = (0..layers)
            .map(|layer| session.read_f32(&cached_rows(layer)))
            .collect::<Result<_>>()?;
        for (layer, cache) in caches.iter().enumerate() {
            // The caches of the layers lie one after the other, each [rows, T, (H+2Hk)·D].
            let first = (layer * self.rows.len() + row) * cache.len();
            let arena = Arena::cache_of(self.target.precision);
            self.step.write_arena_from(arena, first, cache)?;
        }
        self.rows[row].read = prompt.ids.clone();
        Ok(self.choose(&[row], true)?[0])
    }

    /// Loads the program for prompts with room for so many tiles or further images, if it is not there.
    fn ready_prompts(&mut self, slots: usize) -> Result<()> {
        if let Some(at) = self.prompts.iter().position(|(room, _)| *room == slots) {
            let found = self.prompts.remove(at);
            self.prompts.push(found);
            return Ok(());
        }
        let shape = BatchShape {
            tiling: Tiling { most: slots, slots },
            ..self.shape
        };
        let (config, next) = (&self.config, self.next);
        let layers = 0..config.language.depth;
        let keep = layers
            .map(cached_rows)
            .chain([EMBEDDED.to_owned()])
            .collect();
        let program: Arc<Program> = plan_forward(&self.layout, self.target, keep, |tape| {
            record_prompt(tape, config, &shape, next)
        })?;
        // The first is that of one image, which most prompts have.
        if self.prompts.len() == PROMPT_PROGRAMS {
            let first = self.prompts.iter().map(|(room, _)| *room).min();
            let at = self
                .prompts
                .iter()
                .position(|(room, _)| Some(*room) != first);
            self.prompts.remove(at.unwrap_or(0));
        }
        let session = self.executor.load(program)?;
        self.prompts.push((slots, session));
        Ok(())
    }

    /// Runs the program for prompts; the number of layers, and its session.
    fn run_prompt(&mut self, prompt: &StreamPrompt) -> Result<(usize, &mut Box<dyn Session>)> {
        let tokens = self.shape.tokens;
        if prompt.ids.is_empty() || prompt.ids.len() > tokens {
            let want = format!("1 to {tokens} tokens");
            return Err(Error::setting("prompt", want, prompt.ids.len()));
        }
        let shown = prompt.shown.as_ref();
        let tiles = shown.map_or(0, |shown| shown.count());
        let least = self.prompts.iter().map(|(room, _)| *room).min();
        let slots = least.unwrap_or(0).max(tiles);
        self.ready_prompts(slots)?;
        let side = self.config.vision.image_size;
        let image = 3 * side * side;
        let mut images = shown.map_or(Vec::new(), |shown| shown.tiles.clone());
        images.resize(slots * image, 0.0);
        match shown {
            Some(shown) => images.extend_from_slice(&shown.whole),
            // Its tokens find no place.
            None => images.resize((slots + 1) * image, 0.0),
        }
        let mut ids = vec![self.pad; tokens];
        ids[..prompt.ids.len()].copy_from_slice(&prompt.ids);
        let mut marks = vec![place::NONE; tokens];
        if shown.is_some() {
            let counts = (tiles, self.config.image_tokens());
            let marks = &mut marks[..prompt.ids.len()];
            mark_places(&prompt.ids, self.shape.image_id, counts, marks);
        }
        let (_, session) = self.prompts.last_mut().expect("it was readied");
        session.write_f32(ModelInput::Images.name(), &images)?;
        session.write_i32(ModelInput::Tokens.name(), &ids)?;
        if slots > 0 {
            session.write_i32(ModelInput::TokenTypes.name(), &marks)?;
        }
        let last = prompt.ids.len() as i32 - 1;
        session.write_i32(ModelInput::Index.name(), &[last])?;
        session.run()?;
        Ok((self.config.language.depth, session))
    }

    /// Reads the next token of the rows `busy`. The others write nothing, and nobody reads what they give.
    fn run_step(&mut self, busy: &[usize]) -> Result<()> {
        let tokens = self.shape.tokens;
        let rows = self.rows.len();
        let (mut next, mut places) = (vec![self.pad; rows], vec![0i32; rows]);
        let mut slots = vec![0i32; rows * tokens];
        for (index, row) in self.rows.iter().enumerate() {
            let place = row.read.len();
            if !busy.contains(&index) {
                continue;
            }
            if place >= tokens {
                let want = format!("at most {tokens} tokens");
                return Err(Error::setting("an answer with its prompt", want, place + 1));
            }
            next[index] = row.next.unwrap_or(self.pad);
            places[index] = place as i32;
            slots[index * tokens + place] = 1;
        }
        self.step.write_i32(ModelInput::Token.name(), &next)?;
        self.step.write_i32(ModelInput::Slots.name(), &slots)?;
        self.step.write_i32(ModelInput::Position.name(), &places)?;
        let seen = seen_up_to(&places, tokens);
        self.step.write_i32(ModelInput::Seen.name(), &seen)?;
        self.step.run()?;
        for row in busy {
            let row = &mut self.rows[*row];
            row.read.push(row.next.unwrap_or(self.pad));
        }
        Ok(())
    }

    /// The next tokens of the rows `busy`, as the last run of the prompts' program or of the step gave them.
    fn choose(&mut self, busy: &[usize], of_prompt: bool) -> Result<Vec<i32>> {
        let session = match of_prompt {
            true => &self.prompts.last().expect("it has just run").1,
            false => &self.step,
        };
        let at = |row: usize| if of_prompt { 0 } else { row };
        if self.next == NextToken::Likeliest {
            let next = session.read_f64("next")?;
            return Ok(busy.iter().map(|row| next[at(*row)] as i32).collect());
        }
        let logits = session.read_f64("logits")?;
        let vocabulary = self.config.language.vocabulary;
        let mut chosen = Vec::with_capacity(busy.len());
        for row in busy {
            let logits = &logits[at(*row) * vocabulary..][..vocabulary];
            let held = &mut self.rows[*row];
            let token = match held.sampling {
                Sampling::Greedy => draw_token(logits, 1.0, f64::MIN_POSITIVE, 0.0),
                Sampling::Random {
                    temperature, top_p, ..
                } => draw_token(logits, temperature, top_p, f64::from(held.draws.unit())),
            };
            chosen.push(token as i32);
        }
        Ok(chosen)
    }
}
