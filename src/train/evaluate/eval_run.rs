//! A finished or stopped run, opened to be measured or asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::settings::{eval_context, evaluation_settings};
use crate::checkpoint::CheckpointModel;
use crate::run::{recipe_of, stage_checkpoints};
use crate::worlds::eval_suite;
use keel_base::error::{Error, Result, with_near_miss};
use keel_data::batch::BatchShape;
use keel_data::chat::{Conversation, MARK, marked_before};
use keel_data::image::{Image, ImageLimits};
use keel_data::pixels::Pixels;
use keel_data::tiles::{self, Tiling};
use keel_engine::executor::{Executor, SelectedDevice};
use keel_eval::{EvalContext, Evaluation, Evaluator, Generator, PromptImage, Sampling};

/// Tokens kept for an answer where an image could take them all in tiles.
const ANSWER_TOKENS: usize = 16;

/// Tokens of a caption where none is read.
const NO_CAPTION: usize = 8;

/// See the module's documentation.
pub struct EvalRun {
    pub(super) stored: CheckpointModel,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) compute: SelectedDevice,
    /// Whether averages have taken the parameters' place.
    pub(super) is_averaged: bool,
}

impl EvalRun {
    /// Opens a run's newest checkpoint, or the checkpoint that `path` names.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Content`] or [`Error::Setting`] naming the file.
    pub fn open(path: &Path, compute: &SelectedDevice) -> Result<EvalRun> {
        let stored = CheckpointModel::open(path)?;
        let executor: Arc<dyn Executor> = Arc::from(compute.open(stored.layout.elements())?);
        stored.write_parameters(executor.as_ref())?;
        Ok(EvalRun {
            stored,
            executor,
            compute: compute.clone(),
            is_averaged: false,
        })
    }

    /// The same with the averages (EMA) that the checkpoint's stage has kept, in the place of the parameters that it trained.
    ///
    /// # Errors
    /// [`Error::Setting`] naming a checkpoint without any; as [`EvalRun::open`].
    pub fn with_averages(mut self) -> Result<EvalRun> {
        self.executor
            .write_parameters(0, &self.stored.averages()?)?;
        self.is_averaged = true;
        Ok(self)
    }

    /// Opens the checkpoint that a run wrote after the stage `stage`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the stages that there are; as [`EvalRun::open`].
    pub fn open_stage(run: &Path, stage: &str, compute: &SelectedDevice) -> Result<EvalRun> {
        if run.is_file() {
            let found = format!("the file {}", run.display());
            return Err(Error::setting(
                "--stage",
                "the folder of a run with it",
                found,
            ));
        }
        recipe_of(run)?;
        let checkpoints = stage_checkpoints(run)?;
        let names: Vec<&str> = checkpoints.iter().map(|(name, _)| name.as_str()).collect();
        match checkpoints.iter().find(|(name, _)| name == stage) {
            Some((_, path)) => EvalRun::open(path, compute),
            None => {
                let want = if names.is_empty() {
                    "a run that has finished a stage".to_owned()
                } else {
                    format!("one of {}", names.join(", "))
                };
                Err(Error::setting(
                    "--stage",
                    want,
                    with_near_miss(stage, &names),
                ))
            }
        }
    }

    /// The model as it stands.
    pub(super) fn eval_context(&self) -> EvalContext<'_> {
        let CheckpointModel {
            recipe,
            layout,
            tokenizer,
            ..
        } = &self.stored;
        eval_context(recipe, layout, self.executor.as_ref(), tokenizer)
    }

    /// What the device had to say since this was last asked, such as that it computes slower than it could.
    pub fn take_warnings(&self) -> Vec<String> {
        self.executor.take_warnings()
    }

    /// The checkpoint's file.
    pub fn path(&self) -> &Path {
        &self.stored.path
    }

    /// What results are named after: the checkpoint's file, with `ema` in its name where averages are measured.
    pub fn result_path(&self) -> PathBuf {
        match self.is_averaged {
            true => self.path().with_extension("ema.safetensors"),
            false => self.path().to_owned(),
        }
    }

    /// The index of the stage the checkpoint was written in or after.
    pub(super) fn stage(&self) -> usize {
        match self.stored.position.step {
            0 => self.stored.position.stage.saturating_sub(1),
            _ => self.stored.position.stage,
        }
    }

    /// Measures the model on the embedded sets.
    ///
    /// # Errors
    /// Whatever the evaluator reports.
    pub fn evaluate(&self, images: usize) -> Result<Evaluation> {
        let stage = &self.stored.recipe.stages[self.stage()];
        let Some(settings) = evaluation_settings(stage, images) else {
            return Err(Error::setting(
                format!("checkpoint {}", self.stored.path.display()),
                "one after a stage that has seen images",
                format!("stage {}, which trained on text alone", stage.name),
            ));
        };
        let suite = eval_suite(&self.stored.recipe);
        let evaluator = Evaluator::new(self.eval_context(), &suite);
        evaluator.evaluate(&stage.name, &settings)
    }

    /// The model's answer to a question about an image; an empty question asks for a description. Of several images each stands
    /// where the question marks it by [`MARK`], or all before a question that marks none.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Content`] when an image cannot be used, [`Error::Setting`] when the question is too long or
    /// marks another number of images.
    pub fn ask(&self, images: &[PathBuf], question: &str, sampling: Sampling) -> Result<String> {
        let open = |image: &PathBuf| Image::open(image, &ImageLimits::default());
        let images = images.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (shown, prompt) = match &images[..] {
            [image] => {
                let shown = self.shown(image, question);
                let prompt = self.prompt(question, shown.count());
                (shown, prompt)
            }
            several => {
                let question = marked(question, several.len())?;
                let image_tokens = self.stored.recipe.model.image_tokens();
                let prompt = self.prompt_of(&question, image_tokens, true);
                (self.shown_together(several), prompt)
            }
        };
        let tokens = self.tokens();
        if prompt.len() >= tokens {
            return Err(Error::setting(
                "--question",
                format!("one that leaves room in {tokens} tokens"),
                format!("{} tokens with the image", prompt.len()),
            ));
        }
        let slots = self.tiles().max(shown.count());
        let mut generator = self.generator(1, slots, sampling)?;
        let mut answers = generator.generate_shown(&[shown], &[prompt])?;
        let answer = answers.pop().expect("one answer a prompt");
        Ok(self.stored.tokenizer.decode(&answer))
    }

    /// How images become numbers: stretched where they may be cut, as their tiles are.
    fn pixels(&self) -> Pixels {
        let pixels = self.stored.recipe.pixels();
        match self.tiles() {
            0 => pixels,
            _ => pixels.beside_tiles(),
        }
    }

    /// A whole image [3, S, S].
    fn whole(&self, image: &Image) -> Vec<f32> {
        let pixels = self.pixels();
        let square = pixels.prepared(image, self.side());
        square.to_chw(pixels.mean, pixels.std)
    }

    fn side(&self) -> u32 {
        self.stored.recipe.model.vision.image_size as u32
    }

    /// Several images as the model was shown them in training, whole: the last in the place of the whole image, the others
    /// before it.
    pub(super) fn shown_together(&self, images: &[Image]) -> PromptImage {
        let mut squares: Vec<Vec<f32>> = images.iter().map(|one| self.whole(one)).collect();
        PromptImage {
            whole: squares.pop().unwrap_or_default(),
            tiles: squares.concat(),
        }
    }

    /// An image as the model was shown images in training, in as many tiles as leave room for the question and the
    /// beginning of an answer.
    pub(super) fn shown(&self, image: &Image, question: &str) -> PromptImage {
        self.shown_beside(image, self.prompt(question, 0).len())
    }

    /// The same, beside a conversation of so many tokens, those of the whole image among them.
    pub(super) fn shown_beside(&self, image: &Image, taken: usize) -> PromptImage {
        let tiles = match self.tiles() {
            0 => Vec::new(),
            most => self.cut(image, taken + ANSWER_TOKENS, most),
        };
        PromptImage {
            whole: self.whole(image),
            tiles,
        }
    }

    /// An image's tiles [n, 3, S, S], at most `most` of them, where so many tokens are taken.
    fn cut(&self, image: &Image, taken: usize, most: usize) -> Vec<f32> {
        let room = self.tokens().saturating_sub(taken);
        let most = most.min(room / self.stored.recipe.model.image_tokens());
        let grid = tiles::grid([image.width, image.height], most, self.side());
        let pixels = self.pixels();
        let tiles = pixels.tiles(image, grid, self.side());
        let numbers = |tile: &Image| tile.to_chw(pixels.mean, pixels.std);
        tiles.iter().flat_map(numbers).collect()
    }

    /// The most tiles that the model has seen of an image.
    pub(super) fn tiles(&self) -> usize {
        self.stored.recipe.most_tiles()
    }

    /// The most tokens of a conversation that the model was trained on.
    pub fn tokens(&self) -> usize {
        let stages = self.stored.recipe.stages.iter();
        stages.map(|stage| stage.max_tokens).max().unwrap_or(0)
    }

    /// The ids up to the answer of a question about an image of so many tiles.
    pub(super) fn prompt(&self, question: &str, tiles: usize) -> Vec<i32> {
        let image_tokens = (1 + tiles) * self.stored.recipe.model.image_tokens();
        self.prompt_of(question, image_tokens, false)
    }

    fn prompt_of(&self, question: &str, image_tokens: usize, is_marked: bool) -> Vec<i32> {
        self.stored.tokenizer.prompt(&Conversation {
            image_tokens,
            is_marked,
            system: None,
            context: "",
            unsupervised: &[],
            turns: vec![[question, ""]],
        })
    }

    /// What answers `batch` questions at a time, with room for `slots` tiles or further images of each.
    pub(super) fn generator(
        &self,
        batch: usize,
        slots: usize,
        sampling: Sampling,
    ) -> Result<Generator> {
        let context = self.eval_context();
        let shape = BatchShape {
            tiling: Tiling {
                most: slots,
                slots: batch * slots,
            },
            ..context.batch_shape(batch, self.tokens(), NO_CAPTION)
        };
        Generator::new(context, shape, sampling)
    }
}

/// A question with as many marks as there are images: those it has, or all before it.
fn marked(question: &str, images: usize) -> Result<String> {
    match question.matches(MARK).count() {
        0 => Ok(marked_before(question, images)),
        marks if marks == images => Ok(question.to_owned()),
        marks => Err(Error::setting(
            "--question",
            format!("no {MARK}, or one for each of the {images} images"),
            marks,
        )),
    }
}
