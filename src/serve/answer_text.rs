//! The text of an answer while it grows: what may be sent already, and where a stop ends it.

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct AnswerText {
    stops: Vec<String>,
    sent: String,
}

/// What a further token brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The text that may now be sent.
    pub text: String,
    /// Whether a stop was found: the answer ends before it.
    pub is_stopped: bool,
}

impl AnswerText {
    /// Of an answer that each of `stops` ends.
    pub fn new(stops: Vec<String>) -> AnswerText {
        AnswerText {
            stops,
            sent: String::new(),
        }
    }

    /// Takes the text of all tokens so far; `is_last` where no token follows.
    pub fn grow(&mut self, all: &str, is_last: bool) -> Growth {
        let stop = self.stops.iter().filter_map(|stop| all.find(stop)).min();
        let end = match stop {
            Some(at) => at,
            None if is_last => all.len(),
            None => self.settled(all),
        };
        // A tokenizer whose later tokens change the text of earlier ones: nothing is sent until it agrees again.
        let text = all[..end].strip_prefix(&self.sent).unwrap_or_default();
        let text = text.to_owned();
        self.sent.push_str(&text);
        Growth {
            text,
            is_stopped: stop.is_some(),
        }
    }

    /// How much of `all` stays as it is, whatever follows: not a character that is not whole yet, and not the beginning of a
    /// stop.
    fn settled(&self, all: &str) -> usize {
        let whole = all.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let begins = |stop: &String| {
            let ends = (1..stop.len())
                .rev()
                .filter(|end| stop.is_char_boundary(*end));
            ends.into_iter().find(|end| whole.ends_with(&stop[..*end]))
        };
        let held = self.stops.iter().filter_map(begins).max();
        whole.len() - held.unwrap_or(0)
    }
}
