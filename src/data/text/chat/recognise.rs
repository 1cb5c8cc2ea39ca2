//! Which chat template a published model was trained on, by what its `chat_template` makes of conversations; and the same
//! templates written for others.
//!
//! Published texts of one template differ in spelling, tools and comments, and texts of different templates in a word. So what
//! counts is what a text renders, not how it is written.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error as RenderError, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::template::ChatTemplate;

/// Steps of a rendering. Published templates need some hundreds on these conversations; a text from outside may never end.
const FUEL: u64 = 100_000;
/// What is shown of a rendering in a message, characters.
const SHOWN: usize = 200;

/// A conversation and whether the model is to go on from it.
struct Probe {
    /// What messages call it.
    what: &'static str,
    messages: &'static [(&'static str, &'static str)],
    asks: bool,
}

/// Conversations on which the templates differ from each other and from what they are not: a prompt, turns that are finished,
/// and system words that are not the template's own.
const PROBES: [Probe; 3] = [
    Probe {
        what: "a question",
        messages: &[("user", "What is it?")],
        asks: true,
    },
    Probe {
        what: "questions and answers",
        messages: &[
            ("user", "What is it?"),
            ("assistant", "A fox."),
            ("user", "Which colour?"),
            ("assistant", "Red."),
        ],
        asks: false,
    },
    Probe {
        what: "a question under system words",
        messages: &[("system", "Be brief."), ("user", "What is it?")],
        asks: true,
    },
];

impl ChatTemplate {
    /// The template that lays out conversations as `text` does, a `chat_template` in Jinja as transformers renders it. `tokens`
    /// are the beginning and the end of a text, as the tokenizer's settings name them.
    ///
    /// Templates that can reason are asked for answers without, which is how Keel trains.
    ///
    /// # Errors
    /// What the text makes of a conversation, where no template does the same, or why it cannot be rendered.
    pub fn recognise(text: &str, [bos, eos]: [&str; 2]) -> Result<ChatTemplate, String> {
        let mut environment = Environment::new();
        // As transformers sets up its own.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are Jinja's own");
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        let raise = |problem: String| -> Result<String, RenderError> {
            Err(RenderError::new(ErrorKind::InvalidOperation, problem))
        };
        environment.add_function("raise_exception", raise);
        // The day on which a template is rendered is no part of it: Llama 3.2's stands where Llama 3.1's has this one.
        environment.add_function("strftime_now", |_: String| "26 Jul 2024");
        let template = environment
            .template_from_str(text)
            .map_err(|problem| format!("cannot be read ({problem})"))?;
        let mut left = ChatTemplate::ALL.to_vec();
        for probe in &PROBES {
            let messages = probe.messages.iter();
            let messages: Vec<Value> = messages
                .map(|(role, content)| context! { role => *role, content => *content })
                .collect();
            let made = template.render(context! {
                messages,
                add_generation_prompt => probe.asks,
                enable_thinking => false,
                bos_token => bos,
                eos_token => eos,
            });
            let made = made.map_err(|problem| format!("cannot be rendered ({problem})"))?;
            left.retain(|known| known.text(probe) == made);
            if left.is_empty() {
                return Err(format!("renders {} as {}", probe.what, ending(&made)));
            }
        }
        Ok(left[0])
    }

    /// The conversation as this template lays it out.
    fn text(self, probe: &Probe) -> String {
        let (frame, between) = (self.frame(), self.between());
        let header = |role: &str| {
            let role_end = frame.role_end.unwrap_or_default();
            format!("{}{role}{role_end}{}", frame.open, frame.gap)
        };
        let turn = |role: &str, before: &str, content: &str| {
            format!("{}{before}{content}{}{between}", header(role), frame.close)
        };
        let mut text = frame.begin.unwrap_or_default().to_owned();
        let speaks = probe.messages[0].0 == "system";
        if let (false, Some(system)) = (speaks, self.system()) {
            text += &turn("system", self.before_system(), system);
        }
        for (index, (role, content)) in probe.messages.iter().enumerate() {
            let is_last_answer = *role == "assistant" && index + 1 == probe.messages.len();
            let before = if is_last_answer {
                self.before_last_answer()
            } else if *role == "system" {
                self.before_system()
            } else {
                ""
            };
            text += &turn(role, before, content);
        }
        if probe.asks {
            text += &header("assistant");
            text += self.before_last_answer();
        }
        text
    }

    /// This template as a `chat_template` in Jinja, for conversations of system, user and assistant.
    pub fn to_jinja(self) -> String {
        let quoted = |text: &str| text.replace('\n', "\\n");
        let frame = self.frame();
        let (open, close) = (frame.open, frame.close);
        let between = quoted(self.between());
        let before = quoted(self.before_last_answer());
        let before_system = quoted(self.before_system());
        let header = format!(
            "{}{}",
            frame.role_end.unwrap_or_default(),
            quoted(frame.gap)
        );
        let begin = match frame.begin {
            Some(begin) => format!("{{{{ '{begin}' }}}}"),
            None => String::new(),
        };
        let system = match self.system() {
            Some(system) => format!(
                "{{% if messages[0]['role'] != 'system' %}}{{{{ '{open}system{header}{before_system}{system}{close}{between}' }}}}{{% endif %}}"
            ),
            None => String::new(),
        };
        let system_words = if before_system.is_empty() {
            String::new()
        } else {
            format!(
                "{{% if message['role'] == 'system' %}}{{{{ '{before_system}' }}}}{{% endif %}}"
            )
        };
        let trim = if frame.trims { " | trim" } else { "" };
        format!(
            "{begin}{system}{{% for message in messages %}}{{{{ '{open}' + message['role'] + '{header}' }}}}{system_words}\
             {{% if loop.last and message['role'] == 'assistant' %}}{{{{ '{before}' }}}}{{% endif %}}\
             {{{{ (message['content']{trim}) + '{close}{between}' }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ '{open}assistant{header}{before}' }}}}{{% endif %}}"
        )
    }
}

/// The end of a rendering, quoted: what tells templates apart stands around the last turns.
fn ending(text: &str) -> String {
    let cut = text.chars().count().saturating_sub(SHOWN);
    let shown: String = text.chars().skip(cut).collect();
    let before = if cut > 0 { "…" } else { "" };
    format!("{before}{shown:?}")
}
