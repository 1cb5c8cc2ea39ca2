//! Patterns of parameter names, as recipes write them: `vision.blocks.0-5`.

/// A pattern of parameter names: parts joined by dots. `*` stands for any run of characters, and a part `A-B` for the whole
/// numbers from A to B. A pattern takes the parameter of that name and all below it, so that `vision` takes a whole module.
#[derive(Clone, Debug)]
pub struct ParameterPattern<'a> {
    text: &'a str,
    /// What stands between the stars.
    segments: Vec<Vec<Piece<'a>>>,
}

#[derive(Clone, Debug)]
enum Piece<'a> {
    Text(&'a str),
    Numbers([u64; 2]),
}

/// The two ends of a part `A-B`.
fn ends(part: &str) -> Option<[u64; 2]> {
    let (first, last) = part.split_once('-')?;
    let number = |text: &str| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| is_plain)
    };
    Some([number(first)?, number(last)?])
}

/// What is left of `name` behind a segment that begins it.
fn behind<'n>(segment: &[Piece<'_>], name: &'n str) -> Option<&'n str> {
    let mut rest = name;
    for piece in segment {
        rest = match piece {
            Piece::Text(text) => rest.strip_prefix(text)?,
            Piece::Numbers([first, last]) => {
                let (number, behind) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse::<u64>().ok().filter(|_| is_plain)?;
                if !(*first..=*last).contains(&number) {
                    return None;
                }
                behind
            }
        };
    }
    Some(rest)
}

/// What is left of `name` behind the first place at which a segment stands in it, if `ends_well` holds of that.
fn found<'n>(
    segment: &[Piece<'_>],
    name: &'n str,
    ends_well: impl Fn(&str) -> bool,
) -> Option<&'n str> {
    let places = (0..=name.len()).filter_map(|at| name.get(at..));
    let mut rests = places.filter_map(|rest| behind(segment, rest));
    rests.find(|rest| ends_well(rest))
}

impl<'a> ParameterPattern<'a> {
    /// Any text is a pattern; most take nothing.
    pub fn new(text: &'a str) -> ParameterPattern<'a> {
        let mut segments = vec![Vec::new()];
        for (index, part) in text.split('.').enumerate() {
            let segment = segments.last_mut().expect("there is a first");
            if index > 0 {
                segment.push(Piece::Text("."));
            }
            if let Some(ends) = ends(part) {
                segment.push(Piece::Numbers(ends));
                continue;
            }
            let mut texts = part.split('*');
            segment.extend(texts.next().map(Piece::Text));
            segments.extend(texts.map(|text| vec![Piece::Text(text)]));
        }
        ParameterPattern { text, segments }
    }

    /// Whether it takes the parameter of that name.
    pub fn takes(&self, name: &str) -> bool {
        let is_whole = |rest: &str| rest.is_empty() || rest.starts_with('.');
        let (first, others) = self.segments.split_first().expect("there is a first");
        let Some((last, between)) = others.split_last() else {
            return behind(first, name).is_some_and(is_whole);
        };
        // What stands between two stars may as well be taken at its first place: whatever follows has the longest rest then.
        let rest = behind(first, name).and_then(|rest| {
            let mut between = between.iter();
            between.try_fold(rest, |rest, segment| found(segment, rest, |_| true))
        });
        rest.is_some_and(|rest| found(last, rest, is_whole).is_some())
    }

    /// The pattern with one of its parts `A-B` cut down to its last number, for each of these parts.
    pub fn last_numbers(&self) -> Vec<String> {
        let parts: Vec<&str> = self.text.split('.').collect();
        let numbered = parts.iter().enumerate();
        let numbered = numbered.filter_map(|(index, part)| Some((index, ends(part)?)));
        let cut = |(index, [_, last]): (usize, [u64; 2])| {
            let last = last.to_string();
            let mut parts = parts.clone();
            parts[index] = &last;
            parts.join(".")
        };
        numbered.map(cut).collect()
    }

    /// What there is among `names` where the pattern stops taking any, in words: `vision has patch_embed, blocks 0 to 11`.
    pub fn nearest(&self, names: &[&str]) -> String {
        let parts: Vec<&str> = self.text.split('.').collect();
        for length in (0..parts.len()).rev() {
            let above = parts[..length].join(".");
            let pattern = ParameterPattern::new(&above);
            let below = names
                .iter()
                .filter(|name| length == 0 || !above.contains('*') && pattern.takes(name));
            let mut below: Vec<&str> = below
                .filter_map(|name| name.split('.').nth(length))
                .collect();
            below.sort_unstable();
            below.dedup();
            if below.is_empty() {
                continue;
            }
            let mut numbers: Vec<u64> = below.iter().filter_map(|part| part.parse().ok()).collect();
            numbers.sort_unstable();
            let of = if length == 0 { "the model" } else { &above };
            return match (numbers.first(), numbers.last()) {
                (Some(first), Some(last)) => format!("{of} has {first} to {last}"),
                _ => format!("{of} has {}", below.join(", ")),
            };
        }
        "the model has no parameters".to_owned()
    }
}
