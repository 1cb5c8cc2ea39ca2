//! Generation with a cache of keys and values: one pass over images and prompts, then one small pass a token.

use std::sync::Arc;

use super::context::{EvalContext, plan_forward};
use keel_base::error::{Error, Result};
use keel_base::random::{Purpose, Stream};
use keel_data::batch::BatchShape;
use keel_data::image_slots::{mark_places, place};
use keel_engine::executor::Session;
use keel_engine::program::Program;
use keel_engine::tape::{Arena, CompileTarget, ParameterLayout};
use keel_model::{
    ModelConfig, ModelInput, NextToken, cached_rows, record_next_token, record_prompt,
};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest.
    Greedy,
    /// At random.
    Random {
        /// What scores are divided by, above 0.
        temperature: f64,
        /// Only the likeliest tokens that together have at least this probability are drawn from, above 0 and at most 1
        /// (Holtzman et al. 2020).
        top_p: f64,
        /// The seed. Each row draws from its own stream.
        seed: u64,
    },
}

/// An image as a model is shown it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptImage {
    /// All of it [3, S, S].
    pub whole: Vec<f32>,
    /// Its tiles [n, 3, S, S], row by row, or the images before it; none where it is neither cut nor one of several.
    pub tiles: Vec<f32>,
}

impl PromptImage {
    /// How many of these there are.
    pub fn count(&self) -> usize {
        self.tiles.len() / self.whole.len()
    }
}

/// See the module's documentation.
pub struct Generator {
    prompt: Box<dyn Session>,
    step: Box<dyn Session>,
    /// Where the step's program keeps keys and values.
    cache: Arena,
    shape: BatchShape,
    layers: usize,
    /// Tokens of an image or tile, Ti.
    image_tokens: usize,
    sampling: Sampling,
    pad: i32,
    end: i32,
}

/// The two programs of a generator, planned.
#[derive(Clone)]
pub struct GenerationPrograms {
    /// Reads images and prompts.
    pub prompt: Arc<Program>,
    /// Reads one more token of each row.
    pub step: Arc<Program>,
    shape: BatchShape,
    sampling: Sampling,
}

impl GenerationPrograms {
    /// Plans both for `shape.batch` rows of at most `shape.tokens` tokens.
    ///
    /// # Errors
    /// Whatever recording or planning reports.
    pub fn new(
        config: &ModelConfig,
        layout: &Arc<ParameterLayout>,
        compile_target: CompileTarget,
        shape: BatchShape,
        sampling: Sampling,
    ) -> Result<GenerationPrograms> {
        let next = match sampling {
            Sampling::Greedy => NextToken::Likeliest,
            Sampling::Random { .. } => NextToken::Logits,
        };
        let keep = (0..config.language.depth).map(cached_rows).collect();
        Ok(GenerationPrograms {
            prompt: plan_forward(layout, compile_target, keep, |tape| {
                record_prompt(tape, config, &shape, next)
            })?,
            step: plan_forward(layout, compile_target, Vec::new(), |tape| {
                record_next_token(tape, config, &shape, next)
            })?,
            shape,
            sampling,
        })
    }

    /// The sizes that they are planned for.
    pub fn shape(&self) -> &BatchShape {
        &self.shape
    }
}

impl Generator {
    /// Plans and loads both programs for `shape.batch` rows of at most `shape.tokens` tokens.
    ///
    /// # Errors
    /// Whatever recording or loading reports.
    pub fn new(
        context: EvalContext<'_>,
        shape: BatchShape,
        sampling: Sampling,
    ) -> Result<Generator> {
        let target = context.executor.compile_target();
        let (config, layout) = (context.config, context.layout);
        let programs = GenerationPrograms::new(config, layout, target, shape, sampling)?;
        Generator::of(context, &programs)
    }

    /// Loads programs that were planned for the context's model and device.
    ///
    /// # Errors
    /// Whatever loading reports.
    pub fn of(context: EvalContext<'_>, programs: &GenerationPrograms) -> Result<Generator> {
        Ok(Generator {
            prompt: context.executor.load(programs.prompt.clone())?,
            step: context.executor.load(programs.step.clone())?,
            cache: Arena::cache_of(programs.step.compile_target().precision),
            shape: programs.shape,
            layers: context.config.language.depth,
            image_tokens: context.config.image_tokens(),
            sampling: programs.sampling,
            pad: context.tokenizer.pad(),
            end: context.tokenizer.end(),
        })
    }

    /// Continues each of `prompts`, whose images are `images` [n, 3, S, S], until the end token, which is left off, or the
    /// last position. At most as many prompts as the batch has rows.
    ///
    /// # Errors
    /// [`Error::Setting`] when there are too many prompts, or one is empty or leaves no room; whatever the sessions report.
    pub fn generate(&mut self, images: &[f32], prompts: &[Vec<i32>]) -> Result<Vec<Vec<i32>>> {
        let image = images.len() / prompts.len().max(1);
        let whole = |whole: &[f32]| PromptImage {
            whole: whole.to_vec(),
            tiles: Vec::new(),
        };
        let shown: Vec<PromptImage> = images.chunks(image.max(1)).map(whole).collect();
        self.generate_shown(&shown, prompts)
    }

    /// As [`Generator::generate`], of images that may be cut into tiles. A prompt holds the image tokens of its tiles and
    /// of the whole image. Together they have at most `shape.tiling.slots` tiles.
    ///
    /// # Errors
    /// As [`Generator::generate`], and when there are too many tiles.
    pub fn generate_shown(
        &mut self,
        shown: &[PromptImage],
        prompts: &[Vec<i32>],
    ) -> Result<Vec<Vec<i32>>> {
        self.check(shown, prompts)?;
        let BatchShape { batch, tokens, .. } = self.shape;
        // The place of the token that was read last, of each row.
        let mut places: Vec<usize> = (0..batch)
            .map(|row| prompts[prompt_of(row, prompts)].len() - 1)
            .collect();
        self.read_prompts(shown, prompts, &places)?;

        let mut draws = self.streams(batch);
        let mut next = choose(self.prompt.as_ref(), &self.sampling, &mut draws)?;
        let mut answers = vec![Vec::new(); prompts.len()];
        let mut is_done = vec![false; prompts.len()];
        // One-hot rows: the place of the cache that the step's keys and values are written to.
        let mut slots = vec![0i32; batch * tokens];
        loop {
            // Only rows with a prompt are looked at: a row that repeats the first neither ends nor prolongs the batch.
            for (row, answer) in answers.iter_mut().enumerate() {
                is_done[row] |= next[row] == self.end || places[row] + 1 == tokens;
                if !is_done[row] {
                    answer.push(next[row]);
                    // The token just taken fills the last place: its successor would have none, so no step is run for it.
                    is_done[row] = places[row] + 2 == tokens;
                }
            }
            if is_done.iter().all(|done| *done) {
                return Ok(answers);
            }
            slots.fill(0);
            for (row, place) in places.iter_mut().enumerate() {
                // Rows that are done write their last place again: nobody reads it.
                *place = (*place + 1).min(tokens - 1);
                slots[row * tokens + *place] = 1;
            }
            self.run_step(&next, &slots, &places)?;
            next = choose(self.step.as_ref(), &self.sampling, &mut draws)?;
        }
    }

    /// Refuses what the batch has no room for: too many prompts, one that leaves no place for an answer, too many tiles.
    fn check(&self, shown: &[PromptImage], prompts: &[Vec<i32>]) -> Result<()> {
        let BatchShape { batch, tokens, .. } = self.shape;
        let fits = |prompt: &Vec<i32>| !prompt.is_empty() && prompt.len() < tokens;
        if prompts.is_empty() || prompts.len() > batch || !prompts.iter().all(fits) {
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
            let most = format!("1 to {batch} of them, each of 1 to {} tokens", tokens - 1);
            let found = format!("{}, the longest of {longest} tokens", prompts.len());
            return Err(Error::setting("prompts", most, found));
        }
        let tiles: usize = shown.iter().map(PromptImage::count).sum();
        let slots = self.shape.tiling.slots;
        if shown.len() != prompts.len() || tiles > slots {
            return Err(Error::setting(
                "images",
                format!("one a prompt, with at most {slots} tiles together"),
                format!(
                    "{} for {} prompts, with {tiles} tiles",
                    shown.len(),
                    prompts.len()
                ),
            ));
        }
        Ok(())
    }

    /// Runs the prompts' program on everything the rows are shown, and moves the keys and values it made into the cache of
    /// the other. `places` are those of the prompts' last tokens.
    fn read_prompts(
        &mut self,
        shown: &[PromptImage],
        prompts: &[Vec<i32>],
        places: &[usize],
    ) -> Result<()> {
        let BatchShape { batch, tokens, .. } = self.shape;
        let slots = self.shape.tiling.slots;
        let image = shown[0].whole.len();
        // The tiles of all rows come first, in the slots that the program has for them, then the whole image of each row.
        let mut images = Vec::with_capacity((slots + batch) * image);
        for shown in shown {
            images.extend_from_slice(&shown.tiles);
        }
        images.resize(slots * image, 0.0);
        let mut ids = vec![self.pad; batch * tokens];
        let mut marks = vec![place::NONE; batch * tokens];
        for row in 0..batch {
            let from = prompt_of(row, prompts);
            images.extend_from_slice(&shown[from].whole);
            let prompt = &prompts[from];
            ids[row * tokens..][..prompt.len()].copy_from_slice(prompt);
            // Nobody reads what rows beyond the prompts say, and there are no tiles for them.
            if row < prompts.len() {
                let counts = (shown[row].count(), self.image_tokens);
                let marks = &mut marks[row * tokens..][..prompt.len()];
                mark_places(prompt, self.shape.image_id, counts, marks);
            }
        }
        let prompt = &mut self.prompt;
        prompt.write_f32(ModelInput::Images.name(), &images)?;
        prompt.write_i32(ModelInput::Tokens.name(), &ids)?;
        if slots > 0 {
            prompt.write_i32(ModelInput::TokenTypes.name(), &marks)?;
        }
        prompt.write_i32(ModelInput::Index.name(), &as_i32(places))?;
        prompt.run()?;
        // By layer, as the step's program has declared its caches: they lie in the arena one after the other.
        let mut cache = Vec::new();
        for layer in 0..self.layers {
            cache.extend(prompt.read_f32(&cached_rows(layer))?);
        }
        self.step.write_arena(self.cache, &cache)
    }

    /// Reads the token `next` of each row at its place, beside the keys and values of all tokens before it.
    fn run_step(&mut self, next: &[i32], slots: &[i32], places: &[usize]) -> Result<()> {
        let places = as_i32(places);
        self.step.write_i32(ModelInput::Token.name(), next)?;
        self.step.write_i32(ModelInput::Slots.name(), slots)?;
        let seen = seen_up_to(&places, self.shape.tokens);
        self.step.write_i32(ModelInput::Seen.name(), &seen)?;
        self.step.write_i32(ModelInput::Position.name(), &places)?;
        self.step.run()
    }

    fn streams(&self, rows: usize) -> Vec<Stream> {
        let seed = match self.sampling {
            Sampling::Greedy => 0,
            Sampling::Random { seed, .. } => seed,
        };
        (0..rows as u64)
            .map(|row| Stream::new(seed, Purpose::Evaluation, 3, row))
            .collect()
    }
}

/// The prompt that a row of the batch reads: its own, or the first where there is none. The programs have a fixed number of
/// rows, and a row of padding alone would have no last token to go on from.
fn prompt_of(row: usize, prompts: &[Vec<i32>]) -> usize {
    if row < prompts.len() { row } else { 0 }
}

/// For each of `places` what the token there sees of its row, [rows, tokens]: 0 up to the place, −1 beyond.
pub(super) fn seen_up_to(places: &[i32], tokens: usize) -> Vec<i32> {
    let row = |place: &i32| {
        let place = *place as usize;
        (0..tokens).map(move |at| if at <= place { 0 } else { -1 })
    };
    places.iter().flat_map(row).collect()
}

fn as_i32(places: &[usize]) -> Vec<i32> {
    places.iter().map(|place| *place as i32).collect()
}

/// The next token of each row.
fn choose(session: &dyn Session, sampling: &Sampling, draws: &mut [Stream]) -> Result<Vec<i32>> {
    match *sampling {
        Sampling::Greedy => {
            let next = session.read_f64("next")?;
            Ok(next.into_iter().map(|id| id as i32).collect())
        }
        Sampling::Random {
            temperature, top_p, ..
        } => {
            let logits = session.read_f64("logits")?;
            let vocabulary = logits.len() / draws.len();
            let rows = logits.chunks(vocabulary).zip(draws);
            Ok(rows
                .map(|(logits, draw)| {
                    draw_token(logits, temperature, top_p, f64::from(draw.unit())) as i32
                })
                .collect())
        }
    }
}

/// The token that `draw`, 0 to below 1, falls on among the likeliest whose probabilities under `temperature` add up to
/// `top_p` or more. Ties go to the smaller token.
pub fn draw_token(logits: &[f64], temperature: f64, top_p: f64, draw: f64) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|i, j| logits[*j].total_cmp(&logits[*i]));
    let largest = order.first().map_or(0.0, |first| logits[*first]);
    let weight = |token: usize| ((logits[token] - largest) / temperature).exp();
    let all: f64 = order.iter().map(|token| weight(*token)).sum();
    let mut kept = 0.0;
    let mut count = 0;
    for token in &order {
        kept += weight(*token);
        count += 1;
        if kept >= top_p * all {
            break;
        }
    }
    // The draw is scaled to what was kept instead of dividing every probability by it.
    let mut left = draw * kept;
    for token in &order[..count] {
        left -= weight(*token);
        if left < 0.0 {
            return *token;
        }
    }
    // Rounding may leave a trifle behind the last.
    order[count - 1]
}
