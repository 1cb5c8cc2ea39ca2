//! Reads the sources of cuda/ without a compiler: which kernels there are, what their entry points take, and the constants
//! that the engine shares with them. A machine that has neither nvcc nor a C++ compiler gets the same table as any other.
//!
//! Entry points are written by macros, so this is a small preprocessor: includes, conditionals, macros with arguments and
//! `##`, as nvcc would see them. What it does not know stops the build; a test holds what it reads to what the C++
//! compiler says of every kernel.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Macros that this reader looks for in the expanded text, so that it leaves them as they stand.
const MARKS: [&str; 2] = ["KERNEL", "HOST_CONSTANT"];

/// One parameter of an entry point, as src/engine/launch/kernel.rs has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// What it points to, by the name of the Rust variant, and whether it is const.
    Pointer(Option<&'static str>, bool),
    /// `Signed`, `Unsigned` or `Float`, and bytes.
    Number(&'static str, u8),
    /// A tensor map, by value.
    TensorMap,
}

/// A kernel as its source declares it.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    /// The stem of its file.
    pub stem: String,
    pub parameters: Vec<Parameter>,
    /// Blocks of its clusters in x, of `__cluster_dims__`; 1 where it has none.
    pub cluster: u32,
}

/// A HOST_CONSTANT and where it stands, relative to cuda/.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constant {
    pub name: String,
    pub file: PathBuf,
    pub value: i64,
}

/// What one `.cu` file has, its headers' constants included.
pub struct Source {
    pub kernels: Vec<Kernel>,
    pub constants: Vec<Constant>,
}

/// Reads a `.cu` file; `folder` is cuda/, where includes are looked for.
///
/// # Panics
/// With file and reason on what it does not understand.
pub fn read(folder: &Path, path: &Path) -> Source {
    let mut reader = Reader {
        folder,
        seen: HashSet::new(),
        macros: HashMap::new(),
        text: Vec::new(),
        files: Vec::new(),
    };
    reader.file(path);
    let stem = super::stem(path);
    Source {
        kernels: reader.kernels(&stem),
        constants: reader.constants(),
    }
}

/// A token, and which of the reader's files it comes from.
#[derive(Clone, Debug)]
struct Token {
    text: String,
    file: usize,
}

#[derive(Clone)]
struct Macro {
    /// `None` for a macro without parentheses.
    parameters: Option<Vec<String>>,
    body: Vec<Token>,
}

struct Reader<'a> {
    folder: &'a Path,
    /// Every header is included once, as its `#pragma once` says.
    seen: HashSet<PathBuf>,
    macros: HashMap<String, Macro>,
    /// The expanded text so far.
    text: Vec<Token>,
    files: Vec<PathBuf>,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path) {
        if !self.seen.insert(path.to_owned()) {
            return;
        }
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let file = self.files.len();
        self.files.push(path.to_owned());
        let text = without_comments(&text.replace("\\\r\n", " ").replace("\\\n", " "));
        // Of every open conditional, whether its text counts.
        let mut open: Vec<bool> = Vec::new();
        let mut plain = String::new();
        for line in text.lines() {
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                if open.iter().all(|counts| *counts) {
                    plain += line;
                    plain.push('\n');
                }
                continue;
            };
            // What stands before a directive is expanded with the macros of that place: the next line may redefine one.
            self.expand_text(&std::mem::take(&mut plain), file);
            let directive = directive.trim();
            let (word, rest) = directive
                .split_once(|c: char| c.is_whitespace())
                .unwrap_or((directive, ""));
            let rest = rest.trim();
            match word {
                "ifdef" => open.push(self.macros.contains_key(rest)),
                "ifndef" => open.push(!self.macros.contains_key(rest)),
                // Their conditions are expressions, which no kernel needs; an unread one would also lose count of `#endif`s.
                "if" | "elif" => refuse(path, line),
                "else" => {
                    let last = open.last_mut().unwrap_or_else(|| refuse(path, line));
                    *last = !*last;
                }
                "endif" => {
                    open.pop().unwrap_or_else(|| refuse(path, line));
                }
                _ if !open.iter().all(|counts| *counts) => {}
                "include" => {
                    if let Some(name) = rest.strip_prefix('"').and_then(|r| r.strip_suffix('"')) {
                        let beside = path.parent().expect("a file has a folder").join(name);
                        let from_the_root = self.folder.join(name);
                        self.file(&normal(if beside.is_file() {
                            &beside
                        } else {
                            &from_the_root
                        }));
                    }
                }
                "define" => self.define(rest, file),
                "undef" => {
                    self.macros.remove(rest);
                }
                "pragma" => {}
                _ => refuse(path, line),
            }
        }
        self.expand_text(&plain, file);
        assert!(open.is_empty(), "{}: an #endif is missing", path.display());
    }

    fn define(&mut self, text: &str, file: usize) {
        let tokens = tokens(text, file);
        let name = tokens[0].text.clone();
        if MARKS.contains(&name.as_str()) {
            return;
        }
        // A parenthesis right behind the name opens parameters; one behind a space belongs to the body.
        let (parameters, body) = if text[name.len()..].starts_with('(') {
            let close = tokens
                .iter()
                .position(|token| token.text == ")")
                .expect("a macro's parameters end");
            let names = tokens[2..close].iter().filter(|token| token.text != ",");
            (
                Some(names.map(|token| token.text.clone()).collect()),
                close + 1,
            )
        } else {
            (None, 1)
        };
        let body = tokens[body..].to_vec();
        self.macros.insert(name, Macro { parameters, body });
    }

    fn expand_text(&mut self, text: &str, file: usize) {
        let expanded = self.expand(&tokens(text, file), &mut Vec::new());
        self.text.extend(expanded);
    }

    /// Replaces macros, apart from those that are being replaced.
    fn expand(&self, tokens: &[Token], active: &mut Vec<String>) -> Vec<Token> {
        let mut out = Vec::with_capacity(tokens.len());
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            let known = self.macros.get(&token.text);
            let Some(found) = known.filter(|_| !active.contains(&token.text)) else {
                out.push(token.clone());
                continue;
            };
            let body = match &found.parameters {
                None => found.body.clone(),
                Some(parameters) => {
                    if tokens.get(at).is_none_or(|next| next.text != "(") {
                        out.push(token.clone());
                        continue;
                    }
                    let (arguments, end) = arguments(tokens, at);
                    at = end;
                    self.substitute(&token.text, found, parameters, &arguments, active)
                }
            };
            // A macro is not expanded inside itself, as the standard has it; otherwise a recursive one would never end.
            active.push(token.text.clone());
            out.extend(self.expand(&body, active));
            active.pop();
        }
        out
    }

    /// A macro's body with its arguments in place: as they stand beside `##`, expanded elsewhere.
    fn substitute(
        &self,
        name: &str,
        found: &Macro,
        parameters: &[String],
        arguments: &[Vec<Token>],
        active: &mut Vec<String>,
    ) -> Vec<Token> {
        let is_empty = parameters.is_empty() && arguments.iter().all(Vec::is_empty);
        assert!(
            is_empty || parameters.len() == arguments.len(),
            "macro {name} takes {} arguments, but {} are passed",
            parameters.len(),
            arguments.len()
        );
        let body = &found.body;
        let pastes = |at: Option<usize>| {
            at.and_then(|at| body.get(at))
                .is_some_and(|t| t.text == "##")
        };
        let mut out: Vec<Token> = Vec::new();
        // Whether what stands left of a `##` is empty, so that nothing is there to paste to.
        let mut left_is_empty = false;
        for (at, token) in body.iter().enumerate() {
            if token.text == "##" {
                continue;
            }
            let (follows, precedes) = (pastes(at.checked_sub(1)), pastes(Some(at + 1)));
            let argument = parameters.iter().position(|name| *name == token.text);
            let mut piece = match argument {
                Some(index) if follows || precedes => arguments[index].clone(),
                Some(index) => self.expand(&arguments[index], active),
                None => vec![token.clone()],
            };
            // Arguments beside a ## are pasted as written, all others expanded first: the standard's rule, by which
            // kernels' names are made.
            let joins = follows && !left_is_empty;
            left_is_empty = piece.is_empty() && !joins;
            if joins
                && !piece.is_empty()
                && let Some(last) = out.last_mut()
            {
                last.text += &piece.remove(0).text;
            }
            out.extend(piece);
        }
        out
    }

    /// The entry points that KERNEL lines name.
    fn kernels(&self, stem: &str) -> Vec<Kernel> {
        let mut entries: HashMap<&str, (Vec<Parameter>, u32)> = HashMap::new();
        let mut kernels = Vec::new();
        let mut at = 0;
        while let Some(token) = self.text.get(at) {
            at += 1;
            match token.text.as_str() {
                "__global__" => {
                    let mut cluster = 1;
                    while let Some(next) = self.text.get(at) {
                        match next.text.as_str() {
                            "void" => at += 1,
                            "__launch_bounds__" => at = arguments(&self.text, at + 1).1,
                            "__cluster_dims__" => {
                                let (list, end) = arguments(&self.text, at + 1);
                                cluster = cluster_of(&list);
                                at = end;
                            }
                            _ => break,
                        }
                    }
                    let name = &self.text[at].text;
                    let (list, end) = arguments(&self.text, at + 1);
                    let list = list.iter().filter(|one| !one.is_empty());
                    let parameters = list.map(|one| parameter(name, one)).collect();
                    entries.insert(name, (parameters, cluster));
                    at = end;
                }
                "KERNEL" => {
                    let (list, end) = arguments(&self.text, at);
                    let name = &list[0][0].text;
                    let (parameters, cluster) = entries.get(name.as_str()).unwrap_or_else(|| {
                        panic!("KERNEL({name}, ...) in {stem}.cu stands before any entry point of that name")
                    });
                    kernels.push(Kernel {
                        name: name.clone(),
                        stem: stem.to_owned(),
                        parameters: parameters.clone(),
                        cluster: *cluster,
                    });
                    at = end;
                }
                _ => {}
            }
        }
        kernels
    }

    /// The constants marked for the engine. They may be made of each other and of other `constexpr int`s.
    fn constants(&self) -> Vec<Constant> {
        let mut values: HashMap<&str, i64> = HashMap::new();
        let mut constants = Vec::new();
        for (at, token) in self.text.iter().enumerate() {
            let is_marked = token.text == "HOST_CONSTANT";
            if !(is_marked || token.text == "constexpr")
                || self.text.get(at + 1).is_none_or(|next| next.text != "int")
            {
                continue;
            }
            let end = self.text[at..]
                .iter()
                .position(|token| token.text == ";")
                .map_or(self.text.len(), |length| at + length);
            for declaration in self.text[at + 2..end].split(|token| token.text == ",") {
                let [name, equals, value @ ..] = declaration else {
                    continue;
                };
                if equals.text != "=" {
                    continue;
                }
                let value = Expression {
                    rest: value,
                    values: &values,
                }
                .all();
                if is_marked {
                    let file = &self.files[token.file];
                    let value = value.unwrap_or_else(|| {
                        panic!(
                            "{}: {} is a HOST_CONSTANT, so it must be made of integers and constants that stand before it",
                            file.display(),
                            name.text
                        )
                    });
                    constants.push(Constant {
                        name: name.text.clone(),
                        file: file.strip_prefix(self.folder).unwrap_or(file).to_owned(),
                        value,
                    });
                }
                match value {
                    Some(value) => values.insert(&name.text, value),
                    // A name that means something else here must not keep its older value.
                    None => values.remove(name.text.as_str()),
                };
            }
        }
        constants
    }
}

/// The x of `__cluster_dims__(x, 1, 1)`.
fn cluster_of(list: &[Vec<Token>]) -> u32 {
    let numbers: Vec<u32> = list
        .iter()
        .filter_map(|one| one.first()?.text.parse().ok())
        .collect();
    match numbers[..] {
        [x, 1, 1] if x > 0 => x,
        _ => panic!("__cluster_dims__ wants (x, 1, 1), x a number"),
    }
}

fn refuse(path: &Path, line: &str) -> ! {
    panic!(
        "{}: build/source.rs does not understand `{line}`",
        path.display()
    )
}

/// `a/b/../c` as `a/c`, so that a header has one path.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// A parameter from its tokens, with or without a name.
fn parameter(kernel: &str, tokens: &[Token]) -> Parameter {
    let words: Vec<&str> = tokens
        .iter()
        .map(|token| token.text.as_str())
        .filter(|word| !matches!(*word, "__restrict__" | "__grid_constant__"))
        .collect();
    let (_, without_name) = words.split_last().expect("a parameter has a type");
    type_of(without_name)
        .or_else(|| type_of(&words))
        .unwrap_or_else(|| {
            panic!(
                "kernel {kernel}: build/source.rs does not know the type of the parameter `{}`; it knows pointers, int, \
                 int64_t, uint32_t, uint64_t, float and TensorMap",
                words.join(" ")
            )
        })
}

fn type_of(words: &[&str]) -> Option<Parameter> {
    let (is_const, words) = match words {
        ["const", words @ ..] => (true, words),
        words => (false, words),
    };
    Some(match words {
        [base, "*"] => {
            let element = match *base {
                "float" => Some("F32"),
                "bf16" => Some("Bf16"),
                "int" | "int32_t" => Some("I32"),
                "uint32_t" => Some("U32"),
                "uint8_t" => Some("U8"),
                "uint64_t" => Some("U64"),
                _ => None,
            };
            Parameter::Pointer(element, is_const)
        }
        ["int" | "int32_t"] => Parameter::Number("Signed", 4),
        ["int64_t"] => Parameter::Number("Signed", 8),
        ["uint32_t"] => Parameter::Number("Unsigned", 4),
        ["uint64_t"] => Parameter::Number("Unsigned", 8),
        ["float"] => Parameter::Number("Float", 4),
        ["TensorMap"] => Parameter::TensorMap,
        _ => return None,
    })
}

/// The lists between commas of the parentheses that open at `at`, and the place behind them.
fn arguments(tokens: &[Token], at: usize) -> (Vec<Vec<Token>>, usize) {
    let mut list = vec![Vec::new()];
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "{" | "[" => depth += 1,
            ")" | "}" | "]" => depth -= 1,
            _ => {}
        }
        // The parentheses of the list itself are not part of any argument.
        let is_outer = matches!((depth, token.text.as_str()), (1, "(") | (0, ")"));
        match depth {
            0 => return (list, index + 1),
            1 if token.text == "," => list.push(Vec::new()),
            _ if is_outer => {}
            _ => list
                .last_mut()
                .expect("it never gets empty")
                .push(token.clone()),
        }
    }
    panic!(
        "`{}` stands before parentheses that do not close",
        tokens[at.saturating_sub(1)].text
    )
}

/// The text with comments made spaces, and their line ends kept.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |end| end + 2);
            out.extend(rest[..end].chars().filter(|c| *c == '\n'));
            out.push(' ');
            rest = &rest[end..];
        } else if c == '"' || (c == '\'' && !out.ends_with(|c: char| c.is_ascii_digit())) {
            let end = quoted(rest, c);
            out += &rest[..end];
            rest = &rest[end..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// The length of the quoted text that `text` starts with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// Names and numbers, quoted texts, `##`, and single characters.
fn tokens(text: &str, file: usize) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_word(c) {
            // A number takes its point and exponent with it.
            let number = c.is_ascii_digit();
            rest.find(|c: char| !(is_word(c) || (number && c == '.')))
                .unwrap_or(rest.len())
        } else if rest.starts_with("##") {
            2
        } else if c == '"' || c == '\'' {
            quoted(rest, c)
        } else {
            c.len_utf8()
        };
        out.push(Token {
            text: rest[..length].to_owned(),
            file,
        });
        rest = rest[length..].trim_start();
    }
    out
}

/// Sums and products of integers and known names.
struct Expression<'a> {
    rest: &'a [Token],
    values: &'a HashMap<&'a str, i64>,
}

impl Expression<'_> {
    /// The value of all tokens; `None` where they are anything else.
    fn all(mut self) -> Option<i64> {
        let value = self.sum()?;
        self.rest.is_empty().then_some(value)
    }

    fn next_is(&mut self, wanted: &str) -> bool {
        let found = self.rest.first().is_some_and(|token| token.text == wanted);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn sum(&mut self) -> Option<i64> {
        let mut value = self.product()?;
        loop {
            if self.next_is("+") {
                value += self.product()?;
            } else if self.next_is("-") {
                value -= self.product()?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<i64> {
        let mut value = self.one()?;
        loop {
            if self.next_is("*") {
                value *= self.one()?;
            } else if self.next_is("/") {
                value = value.checked_div(self.one()?)?;
            } else {
                return Some(value);
            }
        }
    }

    fn one(&mut self) -> Option<i64> {
        if self.next_is("(") {
            let value = self.sum()?;
            return self.next_is(")").then_some(value);
        }
        let (token, rest) = self.rest.split_first()?;
        self.rest = rest;
        let known = self.values.get(token.text.as_str()).copied();
        known.or_else(|| token.text.parse().ok())
    }
}
