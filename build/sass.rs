//! From a disassembly to a census: how often each kernel's machine code holds each instruction. The build script counts and
//! embeds the census, since a disassembly is a thousand times as long; the report on kernels reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Instructions of one kernel for one chip, by name; those that touch memory carry their width: `LDG.128`.
pub type Counts = BTreeMap<String, u32>;

/// A census by (architecture, kernel).
pub type Census = BTreeMap<(String, String), Counts>;

/// Memory instructions whose width matters.
const SIZED: [&str; 7] = ["LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS"];

/// Counts the instructions in what `cuobjdump -sass` prints. The padding behind the code does not count.
pub fn count(disassembly: &str) -> Census {
    let mut census = Census::new();
    let (mut arch, mut kernel) = (String::new(), None);
    for line in disassembly.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("code for ") {
            arch = name.to_owned();
            kernel = None;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            let key = (arch.clone(), name.to_owned());
            census.entry(key.clone()).or_default();
            kernel = Some(key);
        } else if let (Some(key), Some(name)) = (&kernel, instruction(line)) {
            let counts = census.get_mut(key).expect("entered when its name was read");
            *counts.entry(name).or_default() += 1;
        }
    }
    census
}

/// The instruction of a line such as `/*0040*/  @P0 LDG.E.128.CONSTANT R4, [R2.64] ;  /* 0x… */`; none on the others.
fn instruction(line: &str) -> Option<String> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = rest.split_whitespace();
    let mut word = words.next()?;
    if word == "{" {
        word = words.next()?;
    }
    // A predicate stands before the instruction that it guards.
    if word.starts_with('@') {
        word = words.next()?;
    }
    let mut parts = word.trim_end_matches(';').split('.');
    let base = parts.next()?;
    // Padding between kernels, and lines of encoding that have no name.
    if base == "NOP" || !base.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    if base == "MUFU" {
        return Some(word.trim_end_matches(';').to_owned());
    }
    if !SIZED.contains(&base) {
        return Some(base.to_owned());
    }
    let width = parts
        .filter_map(|part| part.trim_start_matches(['U', 'S']).parse::<u32>().ok())
        .find(|bits| [8, 16, 64, 128].contains(bits))
        .unwrap_or(32);
    Some(format!("{base}.{width}"))
}

/// The census as text, one kernel a line: `sm_80 add_f32 BRA=2 LDG.128=2`.
pub fn write(census: &Census) -> String {
    let mut text = String::new();
    for ((arch, kernel), counts) in census {
        write!(text, "{arch} {kernel}").expect("writing to a string cannot fail");
        for (name, count) in counts {
            write!(text, " {name}={count}").expect("writing to a string cannot fail");
        }
        text.push('\n');
    }
    text
}

/// Reads what [`write()`] wrote.
pub fn read(text: &str) -> Census {
    let mut census = Census::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(arch), Some(kernel)) = (words.next(), words.next()) else {
            continue;
        };
        let counts = words
            .filter_map(|word| {
                let (name, count) = word.split_once('=')?;
                Some((name.to_owned(), count.parse().ok()?))
            })
            .collect();
        census.insert((arch.to_owned(), kernel.to_owned()), counts);
    }
    census
}
