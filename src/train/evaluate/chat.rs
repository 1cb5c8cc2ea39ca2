//! Conversations as a run is asked them from outside: several turns, words of the system, any number of images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::eval_run::EvalRun;
use crate::checkpoint::CheckpointModel;
use crate::recipe::StageKind;
use crate::run::stage_checkpoints;
use keel_base::error::{Error, Result};
use keel_data::chat::{Conversation, MARK};
use keel_data::image::Image;
use keel_data::tiles;
use keel_eval::{PromptImage, StreamPrompt, StreamShape, Streams, WordLook, rgb_text, word_looks};

/// A conversation whose last answer is asked for.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// What the system says, in place of the chat template's own words.
    pub system: Option<String>,
    /// Questions and their answers; the last question has an empty one.
    pub turns: Vec<[String; 2]>,
    /// The images, in their order.
    pub images: Vec<Image>,
    /// Whether questions mark by [`MARK`] where images stand; else there is one at most, before the first question.
    pub is_marked: bool,
}

impl Chat {
    fn conversation(&self, image_tokens: usize) -> Conversation<'_> {
        let turns = self.turns.iter();
        Conversation {
            image_tokens,
            is_marked: self.is_marked,
            system: self.system.as_deref(),
            context: "",
            unsupervised: &[],
            turns: turns
                .map(|turn| turn.each_ref().map(String::as_str))
                .collect(),
        }
    }
}

impl EvalRun {
    /// What the model is given of a conversation. An image that stands before the first question is cut into tiles where the
    /// model was trained on such; of several each is shown whole.
    ///
    /// # Errors
    /// [`Error::Setting`] when images and marks differ in number, or the conversation leaves no room for an answer.
    pub fn put(&self, chat: &Chat) -> Result<StreamPrompt> {
        let tokenizer = &self.stored.tokenizer;
        let image_tokens = self.stored.recipe.model.image_tokens();
        let marks: usize = chat
            .turns
            .iter()
            .map(|turn| turn[0].matches(MARK).count())
            .sum();
        let wanted = if chat.is_marked {
            marks
        } else {
            chat.images.len().min(1)
        };
        if chat.images.len() != wanted {
            let want = format!("one for each of {wanted} places");
            return Err(Error::setting("images", want, chat.images.len()));
        }
        let (shown, ids) = match (&chat.images[..], chat.is_marked) {
            ([], _) => (None, tokenizer.open_prompt(&chat.conversation(0))),
            ([image], false) => {
                let taken = tokenizer
                    .open_prompt(&chat.conversation(image_tokens))
                    .len();
                let shown = self.shown_beside(image, taken);
                let all = (1 + shown.count()) * image_tokens;
                (Some(shown), tokenizer.open_prompt(&chat.conversation(all)))
            }
            (several, _) => {
                let ids = tokenizer.open_prompt(&chat.conversation(image_tokens));
                // Images take memory before they are read; a conversation that is too long is none of them.
                let shown = match ids.len() < self.tokens() {
                    true => Some(self.shown_together(several)),
                    false => None,
                };
                (shown, ids)
            }
        };
        if ids.len() >= self.tokens() {
            return Err(Error::setting(
                "conversation",
                format!(
                    "one that leaves room for an answer in {} tokens",
                    self.tokens()
                ),
                format!("{} tokens", ids.len()),
            ));
        }
        Ok(StreamPrompt {
            ids,
            shown: shown.map(Arc::new),
        })
    }

    /// What answers `rows` conversations side by side, by the likeliest tokens or by drawn ones.
    ///
    /// # Errors
    /// Whatever recording or loading reports.
    pub fn streams(&self, rows: usize, is_sampled: bool) -> Result<Streams> {
        let sizes = StreamShape {
            rows,
            tokens: self.tokens(),
            tiles: self.tiles(),
            is_sampled,
        };
        Streams::new(self.eval_context(), self.executor.clone(), sizes)
    }

    /// The name that a run is known by: its folder's, or the checkpoint's where it lies outside of one.
    pub fn name(&self) -> String {
        let folder = self.path().parent();
        let run = folder
            .filter(|folder| folder.ends_with("checkpoints"))
            .and_then(Path::parent);
        // The folder may have been named as `.`, which is no name.
        let run = run.map(|run| run.canonicalize().unwrap_or_else(|_| run.to_owned()));
        let named = run
            .as_deref()
            .and_then(Path::file_name)
            .or(self.path().file_stem());
        named.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The most images that the model's context has room for.
    pub fn most_images(&self) -> usize {
        self.tokens() / self.stored.recipe.model.image_tokens().max(1)
    }

    /// Pixels along the side of what the model is shown.
    pub fn image_side(&self) -> usize {
        self.stored.recipe.model.vision.image_size
    }

    /// What the model is shown, image by image and tile by tile in the order of their tokens: bytes [S, S, 3] in base64.
    pub fn images_of(&self, shown: &PromptImage) -> Vec<String> {
        let one = shown.whole.len();
        let pixels = self.eval_context().pixels;
        let tiles = shown.tiles.chunks(one);
        tiles
            .chain([&shown.whole[..]])
            .map(|image| rgb_text(image, pixels))
            .collect()
    }

    /// Columns and rows of the tiles that the image of a conversation was cut into, where it was; they come row by row.
    pub fn tile_grid(&self, chat: &Chat, shown: Option<&PromptImage>) -> Option<[u32; 2]> {
        let tiles = shown?.count();
        match &chat.images[..] {
            // With no more tiles than there are the grid is the same.
            [image] if !chat.is_marked && tiles > 0 => {
                let size = [image.width, image.height];
                Some(tiles::grid(size, tiles, self.image_side() as u32))
            }
            _ => None,
        }
    }

    /// The tokens of a text.
    pub fn ids_of(&self, text: &str) -> Vec<i32> {
        self.stored.tokenizer.encode(text)
    }

    /// The text of an answer's tokens.
    pub fn text_of(&self, ids: &[i32]) -> String {
        self.stored.tokenizer.decode(ids)
    }

    /// The token that ends an answer.
    pub fn end_token(&self) -> i32 {
        self.stored.tokenizer.end()
    }

    /// Where the model looked for each token of `answer` behind `prompt`, and which tokens of text its visual tokens are next
    /// to.
    ///
    /// # Errors
    /// Whatever the sessions report.
    pub fn look(
        &self,
        streams: &mut Streams,
        prompt: &StreamPrompt,
        answer: &[i32],
    ) -> Result<WordLook> {
        let mut whole = prompt.clone();
        whole.ids.extend_from_slice(answer);
        whole.ids.truncate(self.tokens());
        let reading = streams.look(&whole)?;
        word_looks(self.eval_context(), &reading, &whole.ids, prompt.ids.len())
    }

    /// The checkpoints of the run's stages before this one that have brought images to the language model, with the stages' names;
    /// none where the checkpoint lies outside a run.
    pub fn stages_before(&self) -> Vec<(String, PathBuf)> {
        let CheckpointModel { recipe, path, .. } = &self.stored;
        let folder = path.parent().and_then(|folder| folder.parent());
        let Some(folder) = folder else {
            return Vec::new();
        };
        let own = &recipe.stages[self.stage()].name;
        let mut stages = stage_checkpoints(folder).unwrap_or_default();
        let end = stages.iter().position(|(name, _)| name == own);
        stages.truncate(end.unwrap_or(stages.len()));
        // Before a stage brings images to it, what the language model says of one means nothing.
        let mut seen = recipe.stages.iter();
        let first = seen.position(|stage| stage.kind != StageKind::WarmStart);
        let connected = &recipe.stages[first.unwrap_or(recipe.stages.len())..];
        stages.retain(|(name, _)| connected.iter().any(|stage| stage.name == *name));
        stages
    }

    /// The name of the stage that the checkpoint was written in or after.
    pub fn stage_name(&self) -> &str {
        &self.stored.recipe.stages[self.stage()].name
    }
}
