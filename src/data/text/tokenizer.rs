//! The embedded tokeniser: byte-level byte-pair encoding with a vocabulary of exactly 512. Small on purpose: the output
//! product of the embedded recipe is 512 columns wide, and any UTF-8 text round-trips because every byte has an id.
//! Ids: 6 special tokens, 256 bytes, 250 learned merges. Tokenisers of published models are read elsewhere.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{OnceLock, RwLock};

use keel_base::error::{Error, Result};

/// Fills the places of a row that no sample uses; never supervised.
pub const PAD: u16 = 0;
/// Opens every sequence.
pub const BEGIN: u16 = 1;
/// Closes every sequence; always supervised.
pub const END: u16 = 2;
/// Stands where a visual token is spliced in.
pub const IMAGE: u16 = 3;
/// Opens the user's turn.
pub const USER: u16 = 4;
/// Opens the answer.
pub const ASSISTANT: u16 = 5;
/// The id of byte 0; byte `b` is `FIRST_BYTE + b`.
pub const FIRST_BYTE: u16 = 6;
/// The id of the first learned merge.
pub const FIRST_MERGE: u16 = FIRST_BYTE + 256;
/// Number of ids.
pub const VOCABULARY: usize = 512;

/// The names of the special tokens, by id.
pub const SPECIAL_NAMES: [&str; FIRST_BYTE as usize] = [
    "<pad>",
    "<begin>",
    "<end>",
    "<image>",
    "<user>",
    "<assistant>",
];

/// Words kept in the encoding cache; beyond this, words are encoded without being kept.
const CACHE_WORDS: usize = 1 << 16;

/// A byte-pair encoder and decoder. Encoding is a pure function of the merges; the cache only saves time.
#[derive(Debug)]
pub struct Tokenizer {
    /// (left id, right id) of merge `i`, whose own id is `FIRST_MERGE + i`.
    merges: Vec<(u16, u16)>,
    ranks: HashMap<(u16, u16), u16>,
    /// Bytes of every id; empty for special tokens.
    bytes: Vec<Vec<u8>>,
    cache: RwLock<HashMap<Box<str>, Box<[u16]>>>,
}

impl Tokenizer {
    /// The tokeniser that is built into the program, learned from the embedded corpus.
    pub fn embedded() -> &'static Tokenizer {
        static EMBEDDED: OnceLock<Tokenizer> = OnceLock::new();
        EMBEDDED.get_or_init(|| {
            Tokenizer::parse(
                "the embedded tokeniser",
                include_str!("../../../assets/tokenizer.merges"),
            )
            .expect("the embedded merges are checked by the tests")
        })
    }

    /// A tokeniser with these merges, in order of rank.
    ///
    /// # Errors
    /// `Content` when a merge names an id that does not exist before it, repeats an earlier pair, or the vocabulary
    /// would exceed [`VOCABULARY`]. `what` names the source in the message.
    pub fn from_merges(what: &str, merges: Vec<(u16, u16)>) -> Result<Tokenizer> {
        let most = VOCABULARY - usize::from(FIRST_MERGE);
        let broken = |problem: String| {
            Error::content(
                what,
                problem,
                "rebuild the merges with `keel data tokenizer`",
            )
        };
        if merges.len() > most {
            return Err(broken(format!(
                "{} merges, at most {most} fit",
                merges.len()
            )));
        }
        let mut bytes: Vec<Vec<u8>> = vec![Vec::new(); usize::from(FIRST_BYTE)];
        bytes.extend((0..=255u8).map(|byte| vec![byte]));
        let mut ranks = HashMap::new();
        for (rank, &(left, right)) in merges.iter().enumerate() {
            let id = FIRST_MERGE + rank as u16;
            for side in [left, right] {
                if side < FIRST_BYTE || side >= id {
                    return Err(broken(format!(
                        "merge {rank} uses id {side}, which is not made yet"
                    )));
                }
            }
            if ranks.insert((left, right), id).is_some() {
                return Err(broken(format!("merge {rank} repeats an earlier pair")));
            }
            let joined = [
                &bytes[usize::from(left)][..],
                &bytes[usize::from(right)][..],
            ]
            .concat();
            bytes.push(joined);
        }
        Ok(Tokenizer {
            merges,
            ranks,
            bytes,
            cache: RwLock::new(HashMap::new()),
        })
    }

    /// Reads a merges file: a line `left right` of ids per merge, what follows them on the line is for the reader;
    /// lines that open with `#` are skipped. `what` names the file in messages.
    pub fn parse(what: &str, text: &str) -> Result<Tokenizer> {
        let mut merges = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let mut fields = line.split_whitespace().map(str::parse::<u16>);
            match (fields.next(), fields.next()) {
                (Some(Ok(left)), Some(Ok(right))) => merges.push((left, right)),
                _ => {
                    return Err(Error::content(
                        format!("{what}, line {}", number + 1),
                        format!("wanted two ids, found {line:?}"),
                        "rebuild the merges with `keel data tokenizer`",
                    ));
                }
            }
        }
        Tokenizer::from_merges(what, merges)
    }

    /// The merges file of this tokeniser; [`Tokenizer::parse`] reads it back.
    pub fn to_file(&self) -> String {
        let mut file = String::from(
            "# Byte-pair merges of the embedded tokeniser: left id, right id, the joined text.\n\
             # Ids 0-5 are special, 6-261 the bytes, 262 and up these lines in order.\n",
        );
        for (rank, (left, right)) in self.merges.iter().enumerate() {
            let joined = &self.bytes[usize::from(FIRST_MERGE) + rank];
            let text = String::from_utf8_lossy(joined);
            writeln!(file, "{left} {right} {text:?}").expect("writing to a string cannot fail");
        }
        file
    }

    /// Learns merges from `corpus` (texts with how often each counts) until the vocabulary is full: repeatedly joins the
    /// most frequent neighbouring pair inside words; ties go to the smaller pair of ids. Deterministic.
    pub fn learn<'a>(corpus: impl IntoIterator<Item = (&'a str, u64)>) -> Result<Tokenizer> {
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for (text, times) in corpus {
            for word in words(text) {
                *counts.entry(word).or_default() += times;
            }
        }
        let mut pieces: Vec<(Vec<u16>, u64)> = counts
            .into_iter()
            .map(|(word, times)| (byte_ids(word).collect(), times))
            .collect();
        let mut merges = Vec::new();
        while merges.len() < VOCABULARY - usize::from(FIRST_MERGE) {
            let mut pairs: HashMap<(u16, u16), u64> = HashMap::new();
            for (ids, times) in &pieces {
                for pair in ids.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_default() += times;
                }
            }
            let best = pairs
                .into_iter()
                .max_by_key(|&(pair, times)| (times, std::cmp::Reverse(pair)));
            let Some((pair, _)) = best else {
                return Err(Error::content(
                    "the tokeniser's corpus",
                    format!("it has only {} pairs to merge", merges.len()),
                    "give a larger corpus",
                ));
            };
            let id = FIRST_MERGE + merges.len() as u16;
            for (ids, _) in &mut pieces {
                join(ids, pair, id);
            }
            merges.push(pair);
        }
        Tokenizer::from_merges("the learned tokeniser", merges)
    }

    /// Number of ids, special tokens included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Always false: the special tokens and the bytes are there without any merge.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The ids of `text`, without special tokens.
    pub fn encode(&self, text: &str) -> Vec<u16> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u16>) {
        for word in words(text) {
            {
                let cache = self.cache.read().expect("no holder of the cache panics");
                if let Some(known) = cache.get(word) {
                    ids.extend_from_slice(known);
                    continue;
                }
            }
            let found = self.encode_word(word);
            ids.extend_from_slice(&found);
            let mut cache = self.cache.write().expect("no holder of the cache panics");
            if cache.len() < CACHE_WORDS {
                cache.insert(word.into(), found.into());
            }
        }
    }

    fn encode_word(&self, word: &str) -> Vec<u16> {
        let mut ids: Vec<u16> = byte_ids(word).collect();
        loop {
            let lowest = ids
                .windows(2)
                .filter_map(|pair| {
                    let pair = (pair[0], pair[1]);
                    self.ranks.get(&pair).map(|&id| (id, pair))
                })
                .min();
            match lowest {
                Some((id, pair)) => join(&mut ids, pair, id),
                None => return ids,
            }
        }
    }

    /// The bytes behind `ids`; special tokens and ids outside the vocabulary add nothing.
    pub fn decode_bytes(&self, ids: &[u16]) -> Vec<u8> {
        ids.iter()
            .filter_map(|&id| self.bytes.get(usize::from(id)))
            .flatten()
            .copied()
            .collect()
    }

    /// The text behind `ids`; bytes that are not UTF-8 (a model may produce them) become U+FFFD.
    pub fn decode(&self, ids: &[u16]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }
}

fn byte_ids(word: &str) -> impl Iterator<Item = u16> + '_ {
    word.bytes().map(|byte| FIRST_BYTE + u16::from(byte))
}

/// Replaces every `pair` in `ids` by `id`, from the left.
fn join(ids: &mut Vec<u16>, pair: (u16, u16), id: u16) {
    let (mut from, mut to) = (0, 0);
    while from < ids.len() {
        if from + 1 < ids.len() && (ids[from], ids[from + 1]) == pair {
            ids[to] = id;
            from += 2;
        } else {
            ids[to] = ids[from];
            from += 1;
        }
        to += 1;
    }
    ids.truncate(to);
}

/// Splits `text` into the units that merges may not cross: a run of letters, a single digit, or a run of anything else,
/// each with the one space before it. Their concatenation is the text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    #[derive(PartialEq, Clone, Copy)]
    enum Class {
        Letters,
        Digit,
        Space,
        Other,
    }
    let class = |character: char| match character {
        _ if character.is_alphabetic() => Class::Letters,
        '0'..='9' => Class::Digit,
        ' ' => Class::Space,
        _ => Class::Other,
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut characters = rest.char_indices().peekable();
        let (_, first) = characters.next()?;
        let mut run = class(first);
        if run == Class::Space {
            match characters.peek() {
                Some(&(_, next)) if class(next) != Class::Space => {
                    run = class(next);
                    characters.next();
                }
                _ => run = Class::Digit, // a space before a space, or at the end, stands alone
            }
        }
        let end = match run {
            Class::Digit => characters.next(),
            _ => characters.find(|&(_, next)| class(next) != run),
        }
        .map_or(rest.len(), |(at, _)| at);
        let (word, tail) = rest.split_at(end);
        rest = tail;
        Some(word)
    })
}
