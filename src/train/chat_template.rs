//! The tokenizer and chat template of a run: the embedded ones, or those that a published language model brings along.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

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

/// A tokenizer's settings beside its `tokenizer.json`.
pub(crate) const TOKENIZER_SETTINGS: &str = "tokenizer_config.json";
/// A chat template in a file of its own.
pub(crate) const JINJA: &str = "chat_template.jinja";
/// The key of a chat template in settings.
pub(crate) const CHAT_TEMPLATE: &str = "chat_template";

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
    /// the tokens of images in the vocabulary, and lengthens conversations by what the layout takes more. Returns the sentence
    /// that says which template was found.
    ///
    /// # Errors
    /// As [`FolderChat::open`].
    pub(super) fn adopt_tokenizer(
        &mut self,
        folder: &Folder,
        said: Option<ChatTemplate>,
    ) -> Result<Option<String>> {
        let rows = self.model.language.vocabulary;
        let Some(chat) = FolderChat::open(folder, rows, said)? else {
            return Ok(None);
        };
        let tokenizer = &chat.tokenizer;
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
        let longer = length(tokenizer).saturating_sub(length(ChatTokenizer::embedded()));
        let caption = longest_caption(tokenizer);
        for stage in &mut self.stages {
            stage.max_tokens = stage
                .max_tokens
                .saturating_add(longer)
                .max(length(tokenizer) + caption);
            stage.max_caption_tokens = stage.max_caption_tokens.max(caption);
        }
        if let Some(text) = &mut self.model.text {
            text.context_length = text.context_length.max(caption);
        }
        let path = chat
            .path
            .canonicalize()
            .map_err(|e| Error::io(&chat.path, "find", e))?;
        self.chat = Some(ChatSettings {
            tokenizer: path.to_string_lossy().into_owned(),
            template: chat.template,
        });
        Ok(chat
            .said_by
            .map(|file| format!("chat template: {}, as {file} says", chat.template.name())))
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

/// The keys of a whole model's settings under which its decoder's stand.
const DECODER_KEYS: [&str; 2] = ["llm_config", "text_config"];

/// Largest file of settings that a chat template is looked for in, bytes; published ones have some kilobytes, those with every
/// token of a vocabulary some hundreds.
const MAX_SETTINGS: u64 = 64 << 20;

/// The chat template that a folder's language model was trained on, as the folder says: a whole model of InternVL's form by the
/// key `template`, others by the conversations that their `chat_template` lays out. Returns the file that says so, too.
///
/// # Errors
/// [`Error::Setting`] naming the file where the template is none that Keel has, [`Error::Content`] where the folder says none or
/// the file cannot be read.
pub fn folder_chat_template(folder: &Folder) -> Result<(ChatTemplate, &'static str)> {
    let path = |name: &str| folder.path().join(name);
    let names = || ChatTemplate::ALL.map(ChatTemplate::name).join(", ");
    let remedy = || format!("say with --chat on what chats it was trained: {}", names());
    let config = folder.config();
    let is_whole = DECODER_KEYS.iter().any(|key| config.contains_key(*key));
    if let Some(name) = config.get("template").and_then(Json::as_str)
        && is_whole
    {
        let known = ChatTemplate::ALL
            .map(ChatTemplate::internvl_name)
            .join(", ");
        let template = ChatTemplate::from_internvl_name(name).ok_or_else(|| {
            Error::setting(
                format!("{}: template", path("config.json").display()),
                format!("one of {known}; --chat says which of Keel's the model was trained on"),
                name,
            )
        })?;
        return Ok((template, "config.json"));
    }
    let settings = read_settings(&path(TOKENIZER_SETTINGS))?;
    match folder_chat_template_of(folder.path(), &settings)? {
        Some((Ok(template), file)) => Ok((template, file)),
        Some((Err(problem), file)) => Err(Error::content(
            format!("{}: {CHAT_TEMPLATE}", path(file).display()),
            format!("{problem}, as no template of Keel's does"),
            remedy(),
        )),
        None => Err(Error::content(
            folder.path().display(),
            format!("says no chat template, in {TOKENIZER_SETTINGS} or {JINJA}"),
            remedy(),
        )),
    }
}

/// The chat template that a folder's `chat_template` is, or what is wrong with it, and the file that it stands in; nothing where the
/// folder has none. `settings` are those of its tokenizer.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file that cannot be read.
pub(crate) fn folder_chat_template_of(
    folder: &Path,
    settings: &Map<String, Json>,
) -> Result<Option<(Result<ChatTemplate, String>, &'static str)>> {
    let token = |key: &str| {
        let token = match settings.get(key) {
            // A token with its flags.
            Some(Json::Object(token)) => token.get("content"),
            other => other,
        };
        token.and_then(Json::as_str).unwrap_or_default()
    };
    let text = chat_template_text(folder, settings)?;
    Ok(text.map(|(text, file)| {
        let tokens = [token("bos_token"), token("eos_token")];
        (ChatTemplate::recognise(&text, tokens), file)
    }))
}

/// A folder's `chat_template` and the file that it stands in, in the order in which transformers looks.
fn chat_template_text(
    folder: &Path,
    settings: &Map<String, Json>,
) -> Result<Option<(String, &'static str)>> {
    let path = folder.join(JINJA);
    if path.exists() {
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        return Ok(Some((text, JINJA)));
    }
    const PROCESSOR: &str = "chat_template.json";
    let processor = read_settings(&folder.join(PROCESSOR))?;
    for (settings, file) in [(settings, TOKENIZER_SETTINGS), (&processor, PROCESSOR)] {
        let text = match settings.get(CHAT_TEMPLATE) {
            Some(Json::String(text)) => Some(text.as_str()),
            // Several by name: the one that is used where none is asked for.
            Some(Json::Array(list)) => list.iter().find_map(|named| {
                let is_default = named.get("name")?.as_str()? == "default";
                named.get("template")?.as_str().filter(|_| is_default)
            }),
            _ => None,
        };
        if let Some(text) = text {
            return Ok(Some((text.to_owned(), file)));
        }
    }
    Ok(None)
}

/// The settings in a JSON file beside weights; none where there is no such file.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`] naming the file.
pub(crate) fn read_settings(path: &Path) -> Result<Map<String, Json>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let bad = |problem: String| Error::content(path.display(), problem, "copy the file anew");
    let size = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if size.len() > MAX_SETTINGS {
        return Err(bad(format!(
            "has {} bytes, the limit is {MAX_SETTINGS}",
            size.len()
        )));
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not a JSON object ({e})")))
}

/// What a folder's chats are: its tokenizer with the template that goes with it.
#[derive(Debug)]
pub struct FolderChat {
    /// The tokenizer.
    pub tokenizer: ChatTokenizer,
    /// Its file.
    pub path: PathBuf,
    /// The chat template.
    pub template: ChatTemplate,
    /// The file of the folder that says so; nothing where the caller said it.
    pub said_by: Option<&'static str>,
}

impl FolderChat {
    /// Reads a folder's tokenizer for a model with `rows` embeddings, with the chat template `said`, or else the folder's own.
    /// Gives nothing where the folder has no tokenizer and its model's vocabulary is the embedded one.
    ///
    /// # Errors
    /// [`Error::Content`] when the folder has no tokenizer and its vocabulary is not the embedded one, or has one of another model;
    /// as [`folder_chat_template`] and [`ChatTokenizer::open`].
    pub fn open(
        folder: &Folder,
        rows: usize,
        said: Option<ChatTemplate>,
    ) -> Result<Option<FolderChat>> {
        let path = folder.path().join(TOKENIZER);
        if !path.exists() && said.is_none() && rows == VOCABULARY {
            return Ok(None);
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
        let (template, said_by) = match said {
            Some(template) => (template, None),
            None => {
                let (template, file) = folder_chat_template(folder)?;
                (template, Some(file))
            }
        };
        let tokenizer = ChatTokenizer::open(&path, template)?;
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
        Ok(Some(FolderChat {
            tokenizer,
            path,
            template,
            said_by,
        }))
    }
}
