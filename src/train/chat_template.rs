//! The tokenizer and chat template of a run: the embedded ones, or those that a published language model brings along.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::checkpoint::Sink;
use super::recipe::{ChatSettings, Recipe};
use super::run::TOKENIZER;
use keel_base::error::{Error, Result};
use keel_data::chat::{ChatTemplate, ChatTokenizer, Conversation};
use keel_data::tokenizer::VOCABULARY;
use keel_emoji::captions::{SHORT_TEMPLATES, plain_caption};
use keel_emoji::emoji_set::EmojiSet;
use keel_emoji::names::with_article;
use keel_engine::tape::ParameterLayout;
use keel_weights::Folder;

/// Tables with a row a token.
const TABLES: [&str; 2] = ["language.embedding", "language.head.weight"];

impl Recipe {
    /// The tokenizer of the run, with its chat template; the copy in the run's folder `run` is preferred to the file that the
    /// recipe names.
    ///
    /// # Errors
    /// As [`ChatTokenizer::open`]; [`Error::Setting`] when the model has fewer rows than the tokeniser has ids.
    pub fn chat_tokenizer(&self, run: Option<&Path>) -> Result<Arc<ChatTokenizer>> {
        let Some(chat) = &self.chat else {
            return Ok(ChatTokenizer::embedded().clone());
        };
        let copy = run.map(|run| run.join(TOKENIZER));
        let path = match &copy {
            Some(copy) if copy.exists() => copy.as_path(),
            _ => Path::new(&chat.tokenizer),
        };
        let tokenizer = ChatTokenizer::open(path, chat.template)?;
        let text = self.model.text.as_ref();
        for (key, rows) in [
            ("language", Some(self.model.language.vocabulary)),
            ("text", text.map(|text| text.vocabulary)),
        ] {
            let least = tokenizer.vocabulary();
            if rows.is_some_and(|rows| rows < least) {
                return Err(Error::setting(
                    format!("model.{key}.vocabulary"),
                    format!("at least {least}, which {} makes", path.display()),
                    rows.unwrap_or_default(),
                ));
            }
        }
        Ok(Arc::new(tokenizer))
    }

    /// Takes over the tokeniser of a language model's folder, where there is one: sets the recipe's chat, makes room for
    /// the tokens of images in the vocabulary, and lengthens conversations by what the layout takes more.
    ///
    /// # Errors
    /// [`Error::Content`] when the folder has none and its vocabulary is not the embedded one, or has one of another model;
    /// as [`ChatTokenizer::open`].
    pub(super) fn adopt_tokenizer(
        &mut self,
        folder: &Folder,
        layout: Option<ChatTemplate>,
    ) -> Result<()> {
        let path = folder.path().join(TOKENIZER);
        let rows = self.model.language.vocabulary;
        if !path.exists() && layout.is_none() && rows == VOCABULARY {
            return Ok(());
        }
        if !path.exists() {
            return Err(Error::content(
                folder.path().display(),
                format!(
                    "holds no {TOKENIZER}, and its vocab_size of {rows} is not the embedded tokeniser's {VOCABULARY}"
                ),
                "copy the file that was published with the model there",
            ));
        }
        let layout = layout.unwrap_or_else(|| layout_of(folder));
        let tokenizer = ChatTokenizer::open(&path, layout)?;
        if tokenizer.added().start > rows {
            return Err(Error::content(
                path.display(),
                format!(
                    "makes {} ids, and the model has {rows} embeddings",
                    tokenizer.added().start
                ),
                "give the tokenizer.json that was published with the model",
            ));
        }
        self.model.language.vocabulary = rows.max(tokenizer.vocabulary());
        if let Some(text) = &mut self.model.text {
            text.vocabulary = self.model.language.vocabulary;
        }
        let bare = Conversation {
            image_tokens: self.model.image_tokens(),
            is_marked: false,
            system: None,
            context: "",
            unsupervised: &[],
            turns: vec![["", ""]],
        };
        let length = |tokenizer: &ChatTokenizer| tokenizer.sequence(&bare).ids.len();
        let longer = length(&tokenizer).saturating_sub(length(ChatTokenizer::embedded()));
        let caption = longest_caption(&tokenizer);
        for stage in &mut self.stages {
            stage.max_tokens = (stage.max_tokens + longer).max(length(&tokenizer) + caption);
            stage.max_caption_tokens = stage.max_caption_tokens.max(caption);
        }
        if let Some(text) = &mut self.model.text {
            text.context_length = text.context_length.max(caption);
        }
        let path = path
            .canonicalize()
            .map_err(|e| Error::io(&path, "find", e))?;
        self.chat = Some(ChatSettings {
            tokenizer: path.to_string_lossy().into_owned(),
            template: layout,
        });
        Ok(())
    }

    /// Rows of tokens that the weights know nothing of. The file that the recipe names is asked which they are: the run's own
    /// copy holds them already.
    pub(super) fn new_rows(&self) -> Result<NewRows> {
        let added = match &self.chat {
            Some(chat) => ChatTokenizer::open(Path::new(&chat.tokenizer), chat.template)?.added(),
            None => 0..0,
        };
        let width = self.model.language.width;
        Ok(NewRows {
            sums: TABLES.map(|_| vec![0.0; width]),
            added,
        })
    }
}

/// Rows that become the mean of those that the weights know, as InternVL's training begins: a random row would stand out from
/// all others. Tables are heard as they are read, so that none is held.
pub(super) struct NewRows {
    added: Range<usize>,
    /// Of each table's known rows, [D].
    sums: [Vec<f64>; TABLES.len()],
}

impl NewRows {
    /// Takes in values of a parameter from element `first` on.
    pub(super) fn hear(&mut self, name: &str, first: usize, values: &[f32]) {
        let Some(table) = TABLES.iter().position(|table| *table == name) else {
            return;
        };
        let sums = &mut self.sums[table];
        let width = sums.len();
        let known = (self.added.start * width).saturating_sub(first);
        for (index, value) in values.iter().take(known).enumerate() {
            sums[(first + index) % width] += f64::from(*value);
        }
    }

    /// Writes the new rows of every table that the model has.
    pub(super) fn write(self, layout: &ParameterLayout, sink: Sink<'_>) -> Result<()> {
        for (table, sums) in TABLES.iter().zip(&self.sums) {
            let Some(entry) = layout.get(table).filter(|_| !self.added.is_empty()) else {
                continue;
            };
            let mean = sums
                .iter()
                .map(|sum| (sum / self.added.start as f64) as f32);
            let mean: Vec<f32> = mean.collect();
            for row in self.added.clone() {
                sink(entry.offset + row * mean.len(), &mean)?;
            }
        }
        Ok(())
    }
}

/// Tokens of the longest caption that evaluation reads, its end among them: stages are measured on captions of concepts,
/// and none may be cut.
fn longest_caption(tokenizer: &ChatTokenizer) -> usize {
    let emoji = EmojiSet::embedded();
    let classes = emoji
        .subcategories()
        .iter()
        .map(|class| with_article(class));
    let captions = emoji.concepts().iter().map(plain_caption).chain(classes);
    let mut texts: Vec<String> = captions
        .flat_map(|caption| {
            SHORT_TEMPLATES.map(|[before, after]| format!("{before}{caption}{after}"))
        })
        .collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    // Every token of a byte-level tokenizer, which the models of all templates have, is at least a byte of the text: once
    // texts are shorter than the longest caption, none of the rest is worth encoding.
    let end = tokenizer.caption("").len();
    let mut longest = 0;
    for text in texts {
        if text.len() + end <= longest {
            break;
        }
        longest = longest.max(tokenizer.caption(&text).len());
    }
    longest
}

/// The layout that a folder's model was trained on: InternVL's and SAIL-VL's say, others follow from the language model.
fn layout_of(folder: &Folder) -> ChatTemplate {
    let text = |config: &serde_json::Map<String, Json>, key: &str| {
        let value = config.get(key).and_then(Json::as_str);
        value.unwrap_or_default().to_owned()
    };
    let config = folder.config();
    let template = text(config, "template");
    if template.starts_with("sailvl") {
        return ChatTemplate::SailVl;
    }
    if template.starts_with("internvl2_5") || template.starts_with("internvl3") {
        return ChatTemplate::InternVl25;
    }
    let inner = ["llm_config", "text_config"]
        .iter()
        .find_map(|key| config.get(*key)?.as_object());
    match text(inner.unwrap_or(config), "model_type").as_str() {
        "qwen3" => ChatTemplate::Qwen3,
        _ => ChatTemplate::Qwen25,
    }
}
