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
        // Dates stand in system words that no known template has.
        environment.add_function("strftime_now", |format: String| format);
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
        let between = self.between();
        let turn = |role: &str, before: &str, content: &str| {
            format!("<|im_start|>{role}\n{before}{content}<|im_end|>{between}")
        };
        let mut text = String::new();
        let speaks = probe.messages[0].0 == "system";
        if let (false, Some(system)) = (speaks, self.system()) {
            text += &turn("system", "", system);
        }
        for (index, (role, content)) in probe.messages.iter().enumerate() {
            let is_last_answer = *role == "assistant" && index + 1 == probe.messages.len();
            let before = if is_last_answer {
                self.before_last_answer()
            } else {
                ""
            };
            text += &turn(role, before, content);
        }
        if probe.asks {
            text += &format!("<|im_start|>assistant\n{}", self.before_last_answer());
        }
        text
    }

    /// This template as a `chat_template` in Jinja, for conversations of system, user and assistant.
    pub fn to_jinja(self) -> String {
        let quoted = |text: &str| text.replace('\n', "\\n");
        let between = quoted(self.between());
        let before = quoted(self.before_last_answer());
        let system = match self.system() {
            Some(system) => format!(
                "{{% if messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\\n{system}<|im_end|>{between}' }}}}{{% endif %}}"
            ),
            None => String::new(),
        };
        format!(
            "{system}{{% for message in messages %}}{{{{ '<|im_start|>' + message['role'] + '\\n' }}}}\
             {{% if loop.last and message['role'] == 'assistant' %}}{{{{ '{before}' }}}}{{% endif %}}\
             {{{{ message['content'] + '<|im_end|>{between}' }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n{before}' }}}}{{% endif %}}"
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
