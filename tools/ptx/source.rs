//! PTX text as entry points made of statements. Names are resolved later, when a kernel is decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The entry points of one text.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// In the order of the text.
    pub entries: Vec<Entry>,
    /// Source files by the number that `.loc` gives them, without their folders.
    pub files: Arc<BTreeMap<u32, String>>,
}

/// The type of a parameter that is a tensor map: 1024 bits.
pub const MAP: &str = "b1024";

/// One entry point.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The kernel's name.
    pub name: String,
    /// Its parameters, in order: name and type (`u64`).
    pub parameters: Vec<(String, String)>,
    /// Threads of a block, from the constant that the KERNEL line leaves; 0: any number.
    pub threads: u32,
    /// Bytes of dynamic shared memory, from the same constant.
    pub shared_bytes: u32,
    /// Registers by name, or by what stands before their number: `.reg .b32 %r<9>` is `%r` of type `b32`.
    pub registers: Vec<(String, String)>,
    /// The instructions.
    pub statements: Vec<Statement>,
    /// The statement behind each label.
    pub labels: BTreeMap<String, usize>,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's number in [`Module::files`]; 0: unknown.
    pub file: u32,
    /// Its line.
    pub line: u32,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The predicate that guards it, and whether it must be false.
    pub guard: Option<(String, bool)>,
    /// The whole opcode, `fma.rn.f32`.
    pub opcode: String,
    /// What follows it.
    pub operands: Vec<Operand>,
    /// The source line that `.loc` named last.
    pub place: Place,
    /// The instruction as it stands, for messages.
    pub text: String,
}

/// What an instruction is given.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, special register, parameter, label or variable.
    Name(String),
    /// The bits of a literal; integers are extended to 64 bits.
    Immediate(u64),
    /// `[base+offset]`.
    Address(Box<Operand>, i64),
    /// `{…}`.
    List(Vec<Operand>),
    /// `%r1|%p1`.
    Pair(String, String),
    /// `[%rd1, {%r1, %r2}]`: a tensor map and coordinates.
    Box(Box<Operand>, Vec<Operand>),
}

impl Module {
    /// Reads PTX text, or what `cuobjdump -ptx` prints around it.
    ///
    /// # Errors
    /// A sentence that names the statement that cannot be read.
    pub fn parse(text: &str) -> Result<Module, String> {
        let mut module = Module::default();
        let mut blocks: BTreeMap<String, [u32; 2]> = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut rest = text;
        while let Some((line, after)) = next_line(rest) {
            let trimmed = line.trim();
            if let Some(constant) = block_constant(trimmed) {
                blocks.insert(constant.0, constant.1);
            } else if let Some((number, name)) = file_line(trimmed) {
                files.insert(number, name);
            } else if trimmed.contains(".entry ") {
                let (entry, behind) = parse_entry(rest)?;
                module.entries.push(entry);
                rest = behind;
                continue;
            } else if trimmed.starts_with(".func") || trimmed.starts_with(".visible .func") {
                return Err(format!("functions are not executed: {trimmed}"));
            }
            rest = after;
        }
        module.files = Arc::new(files);
        for entry in &mut module.entries {
            if let Some([threads, shared]) = blocks.get(&entry.name) {
                (entry.threads, entry.shared_bytes) = (*threads, *shared);
            }
        }
        Ok(module)
    }
}

fn next_line(text: &str) -> Option<(&str, &str)> {
    if text.is_empty() {
        return None;
    }
    Some(text.split_once('\n').unwrap_or((text, "")))
}

/// `.const .align 4 .b8 keel_block_<kernel>[12] = {32, 0, …};`: the kernel, its threads and its shared bytes.
fn block_constant(line: &str) -> Option<(String, [u32; 2])> {
    let (_, rest) = line.split_once(" keel_block_")?;
    let (name, rest) = rest.split_once('[')?;
    let (_, values) = rest.split_once('{')?;
    let mut bytes = [0u8; 12];
    let values = values.trim_end_matches(['}', ';']).split(',');
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = value.trim().parse().ok()?;
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    Some((name.to_owned(), [word(0), word(4)]))
}

/// `.file 1 "/…/cuda/norm.cu"`.
fn file_line(line: &str) -> Option<(u32, String)> {
    let rest = line.strip_prefix(".file")?.trim();
    let (number, rest) = rest.split_once(char::is_whitespace)?;
    let path = rest.split('"').nth(1)?;
    let name = path.rsplit('/').next()?;
    Some((number.parse().ok()?, name.to_owned()))
}

/// An entry point from its first line on, and what follows it.
fn parse_entry(text: &str) -> Result<(Entry, &str), String> {
    let (_, rest) = text.split_once(".entry ").expect("the caller found it");
    let (name, rest) = rest
        .split_once('(')
        .ok_or("an entry point has no parameter list")?;
    let (list, rest) = rest
        .split_once(')')
        .ok_or("a parameter list does not end")?;
    let mut entry = Entry {
        name: name.trim().to_owned(),
        ..Entry::default()
    };
    for parameter in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let words: Vec<&str> = parameter.split_whitespace().collect();
        let (ty, name) = match words[..] {
            [".param", ty, name] => (ty.trim_start_matches('.'), name),
            // A tensor map, by value.
            [".param", ".align", "64", ".b8", name] if name.ends_with("[128]") => {
                (MAP, name.trim_end_matches("[128]"))
            }
            _ => {
                return Err(format!(
                    "{}: the parameter {parameter} is not read",
                    entry.name
                ));
            }
        };
        entry.parameters.push((name.to_owned(), ty.to_owned()));
    }
    let (_, body) = rest
        .split_once('{')
        .ok_or_else(|| format!("{} has no body", entry.name))?;
    let end = Body {
        entry: &mut entry,
        rest: body,
        place: Place::default(),
        scopes: Vec::new(),
        opened: 0,
    }
    .read()?;
    Ok((entry, end))
}

/// Reads the statements of a body up to the brace that closes it.
struct Body<'a, 'e> {
    entry: &'e mut Entry,
    rest: &'a str,
    place: Place,
    /// Registers declared within braces inside the body: the name there, and the name it has here.
    scopes: Vec<Vec<(String, String)>>,
    opened: usize,
}

impl<'a> Body<'a, '_> {
    fn read(mut self) -> Result<&'a str, String> {
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix("//") {
                self.rest = next_line(rest).map_or("", |(_, rest)| rest);
            } else if let Some(rest) = self.rest.strip_prefix('{') {
                self.scopes.push(Vec::new());
                self.opened += 1;
                self.rest = rest;
            } else if let Some(rest) = self.rest.strip_prefix('}') {
                self.rest = rest;
                if self.scopes.pop().is_none() {
                    return Ok(self.rest);
                }
            } else if self.rest.starts_with(".loc") {
                let (line, rest) = next_line(self.rest).expect("it is not empty");
                self.place = location(line).unwrap_or(self.place);
                self.rest = rest;
            } else if !self.label() {
                let (statement, rest) = self
                    .rest
                    .split_once(';')
                    .ok_or_else(|| format!("{}: the body does not end", self.entry.name))?;
                self.rest = rest;
                self.statement(statement.trim())?;
            }
        }
    }

    /// A label, if one stands here.
    fn label(&mut self) -> bool {
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || c == '$' || c == '_'));
        let Some(end) = end.filter(|end| *end > 0 && self.rest[*end..].starts_with(':')) else {
            return false;
        };
        let mut label = self.rest[..end].to_owned();
        if let Some(scope) = self.scopes.last_mut() {
            // As a register of a scope, a label is another one in every scope; those of inline assembly jump backwards.
            let here = format!("{label}.{}", self.opened);
            scope.push((label, here.clone()));
            label = here;
        }
        self.entry.labels.insert(label, self.entry.statements.len());
        self.rest = &self.rest[end + 1..];
        true
    }

    fn statement(&mut self, text: &str) -> Result<(), String> {
        if text.starts_with(".pragma") || text.is_empty() {
            return Ok(());
        }
        if let Some(declared) = text.strip_prefix(".reg") {
            return self.registers(declared);
        }
        if text.starts_with('.') {
            return Err(format!("{}: {text} is not read", self.entry.name));
        }
        let (guard, instruction) = match text.strip_prefix('@') {
            Some(rest) => {
                let (predicate, rest) = rest
                    .split_once(char::is_whitespace)
                    .ok_or_else(|| format!("{}: {text} guards nothing", self.entry.name))?;
                let name = predicate.trim_start_matches('!');
                (
                    Some((self.name(name), name.len() < predicate.len())),
                    rest.trim(),
                )
            }
            None => (None, text),
        };
        let (opcode, list) = instruction
            .split_once(char::is_whitespace)
            .unwrap_or((instruction, ""));
        let mut operands = Vec::new();
        for part in split(list) {
            operands.push(self.operand(part).ok_or_else(|| {
                format!(
                    "{}: the operand {part} of {text} is not read",
                    self.entry.name
                )
            })?);
        }
        self.entry.statements.push(Statement {
            guard,
            opcode: opcode.to_owned(),
            operands,
            place: self.place,
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
        });
        Ok(())
    }

    fn registers(&mut self, declared: &str) -> Result<(), String> {
        let words: Vec<&str> = declared
            .split([' ', '\t', ','])
            .filter(|w| !w.is_empty())
            .collect();
        let Some((ty, names)) = words.split_first() else {
            return Err(format!("{}: .reg{declared} is not read", self.entry.name));
        };
        for name in names {
            let name = name.split('<').next().unwrap_or(name).to_owned();
            let here = match self.scopes.last_mut() {
                Some(scope) => {
                    // A register of a scope is another one in every scope.
                    let here = format!("{name}.{}", self.opened);
                    scope.push((name, here.clone()));
                    here
                }
                None => name,
            };
            let ty = ty.trim_start_matches('.').to_owned();
            self.entry.registers.push((here, ty));
        }
        Ok(())
    }

    /// A register's name outside the scopes it may be declared in.
    fn name(&self, name: &str) -> String {
        let scopes = self.scopes.iter().rev().flatten();
        let mut found = scopes.filter(|(inner, _)| inner == name);
        found.next().map_or(name, |(_, here)| here).to_owned()
    }

    fn operand(&self, text: &str) -> Option<Operand> {
        if let Some(inner) = text.strip_prefix('{') {
            let inner = inner.strip_suffix('}')?;
            let parts = split(inner).into_iter().map(|part| self.operand(part));
            return parts.collect::<Option<Vec<_>>>().map(Operand::List);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']')?;
            if let [map, coordinates] = split(inner)[..] {
                let Operand::List(coordinates) = self.operand(coordinates)? else {
                    return None;
                };
                return Some(Operand::Box(Box::new(self.operand(map)?), coordinates));
            }
            let (base, offset) = match inner.split_once('+') {
                Some((base, offset)) => (base, offset.trim().parse().ok()?),
                None => (inner, 0),
            };
            return Some(Operand::Address(
                Box::new(self.operand(base.trim())?),
                offset,
            ));
        }
        if let Some((one, other)) = text.split_once('|') {
            return Some(Operand::Pair(
                self.name(one.trim()),
                self.name(other.trim()),
            ));
        }
        if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return literal(text).map(Operand::Immediate);
        }
        Some(Operand::Name(self.name(text)))
    }
}

/// `.loc 1 14 0`, also with `, function_name …, inlined_at …` behind it.
fn location(line: &str) -> Option<Place> {
    let mut words = line.split(|c: char| c.is_whitespace() || c == ',').skip(1);
    let mut number = || words.find(|w| !w.is_empty())?.parse().ok();
    Some(Place {
        file: number()?,
        line: number()?,
    })
}

/// At the commas that no bracket encloses.
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(list[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// `0f3F800000`, `0d3FF0000000000000`, `-7`, `0x1F`, `12U`.
fn literal(text: &str) -> Option<u64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    for prefix in ["0f", "0F", "0d", "0D", "0x", "0X"] {
        if let Some(hex) = digits.strip_prefix(prefix) {
            let value = u64::from_str_radix(hex.trim_end_matches('U'), 16).ok()?;
            return Some(if is_negative {
                value.wrapping_neg()
            } else {
                value
            });
        }
    }
    let value: u64 = digits.trim_end_matches('U').parse().ok()?;
    Some(if is_negative {
        value.wrapping_neg()
    } else {
        value
    })
}
