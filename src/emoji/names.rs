//! Words for the categories, subcategories and readings of the embedded concepts: short, lower case, the same for every
//! vendor. Readings (what a keycap, letter, clock, arrow or flag says) come from the code points alone.

/// The word for one of the nine categories, used as an answer; other text comes back in lower case.
pub fn category_word(category: &str) -> String {
    match category {
        "Activities" => "activity",
        "Animals & Nature" => "nature",
        "Flags" => "flag",
        "Food & Drink" => "food",
        "Objects" => "object",
        "People & Body" => "people",
        "Smileys & Emotion" => "smiley",
        "Symbols" => "symbol",
        "Travel & Places" => "travel",
        other => return other.to_lowercase(),
    }
    .to_owned()
}

/// What a thing of each subcategory is called in the singular, in the order of Unicode's list of emoji: by category, then by
/// subcategory.
const SUBCATEGORY_WORDS: [(&str, &str); 98] = [
    ("arts & crafts", "art or craft"),
    ("award-medal", "medal or award"),
    ("event", "festive thing"),
    ("game", "game"),
    ("sport", "sport"),
    ("animal-amphibian", "amphibian"),
    ("animal-bird", "bird"),
    ("animal-bug", "bug"),
    ("animal-mammal", "mammal"),
    ("animal-marine", "sea animal"),
    ("animal-reptile", "reptile"),
    ("plant-flower", "flower"),
    ("plant-other", "plant"),
    ("country-flag", "country flag"),
    ("flag", "signal flag"),
    ("subdivision-flag", "region flag"),
    ("dishware", "dishware"),
    ("drink", "drink"),
    ("food-asian", "asian food"),
    ("food-fruit", "fruit"),
    ("food-prepared", "cooked food"),
    ("food-sweet", "sweet"),
    ("food-vegetable", "vegetable"),
    ("book-paper", "book or paper"),
    ("clothing", "clothing"),
    ("computer", "computer part"),
    ("household", "household thing"),
    ("light & video", "light or camera"),
    ("lock", "lock or key"),
    ("mail", "mail"),
    ("medical", "medical thing"),
    ("money", "money"),
    ("music", "music thing"),
    ("musical-instrument", "musical instrument"),
    ("office", "office thing"),
    ("other-object", "special object"),
    ("phone", "phone"),
    ("science", "science tool"),
    ("sound", "sound"),
    ("tool", "tool"),
    ("writing", "writing tool"),
    ("body-parts", "body part"),
    ("family", "family"),
    ("hand-fingers-closed", "fist"),
    ("hand-fingers-open", "open hand"),
    ("hand-fingers-partial", "finger sign"),
    ("hand-prop", "hand with a thing"),
    ("hand-single-finger", "pointing finger"),
    ("hands", "pair of hands"),
    ("person", "person"),
    ("person-activity", "person in action"),
    ("person-fantasy", "fantasy person"),
    ("person-gesture", "person making a gesture"),
    ("person-resting", "resting person"),
    ("person-role", "person at work"),
    ("person-sport", "person doing sport"),
    ("person-symbol", "person symbol"),
    ("cat-face", "cat smiley"),
    ("emotion", "emotion sign"),
    ("face-affection", "loving face"),
    ("face-concerned", "worried face"),
    ("face-costume", "costume face"),
    ("face-glasses", "face with glasses"),
    ("face-hand", "face with a hand"),
    ("face-hat", "face with a hat"),
    ("face-negative", "angry face"),
    ("face-neutral-skeptical", "neutral face"),
    ("face-sleepy", "sleepy face"),
    ("face-smiling", "smiling face"),
    ("face-tongue", "face with tongue"),
    ("face-unwell", "sick face"),
    ("heart", "heart"),
    ("monkey-face", "monkey face"),
    ("alphanum", "letter sign"),
    ("arrow", "arrow"),
    ("av-symbol", "player button"),
    ("currency", "money sign"),
    ("gender", "gender sign"),
    ("geometric", "shape"),
    ("keycap", "keycap"),
    ("math", "math sign"),
    ("other-symbol", "sign"),
    ("punctuation", "punctuation mark"),
    ("religion", "religious sign"),
    ("transport-sign", "public sign"),
    ("warning", "warning sign"),
    ("zodiac", "zodiac sign"),
    ("hotel", "hotel thing"),
    ("place-building", "building"),
    ("place-geographic", "landscape"),
    ("place-map", "map or globe"),
    ("place-other", "place"),
    ("place-religious", "place of prayer"),
    ("sky & weather", "weather"),
    ("time", "clock"),
    ("transport-air", "aircraft"),
    ("transport-ground", "land vehicle"),
    ("transport-water", "boat"),
];

/// What a thing of a subcategory is called in the singular; an unknown subcategory keeps its words, hyphens as spaces.
pub fn subcategory_words(subcategory: &str) -> String {
    let known = SUBCATEGORY_WORDS
        .iter()
        .find(|(name, _)| *name == subcategory);
    match known {
        Some((_, words)) => (*words).to_owned(),
        None => subcategory.replace('-', " ").to_lowercase(),
    }
}

/// A concept's name as captions and answers use it: lower case, without quotes and remarks in brackets.
pub fn plain_name(name: &str) -> String {
    let name = name.to_lowercase().replace('"', "");
    let name = name.split(" (").next().unwrap_or(&name);
    name.replace(" & ", " and ").replace("**", "*")
}

/// The country (or region) whose flag a concept is, from its plain name.
pub fn country<'a>(name: &'a str, subcategory: &str) -> Option<&'a str> {
    match subcategory {
        "country-flag" | "subdivision-flag" => name.strip_prefix("flag of "),
        _ => None,
    }
}

/// `name` with its article: "an apple", "the flag of france"; plurals and words for a mass stay bare.
pub fn with_article(name: &str) -> String {
    const PREPOSITIONS: [&str; 8] = ["of", "with", "without", "in", "on", "at", "and", "showing"];
    const MASS: [&str; 8] = [
        "clothing", "dishware", "food", "mail", "money", "sound", "weather", "paper",
    ];
    const SINGULAR_ENDINGS: [&str; 3] = ["ss", "us", "is"];
    let words: Vec<&str> = name.split(' ').collect();
    let head_end = words
        .iter()
        .position(|word| PREPOSITIONS.contains(word))
        .unwrap_or(words.len());
    let head = words[..head_end].last().copied().unwrap_or(words[0]);
    let plural = head.len() > 3
        && head.ends_with('s')
        && !SINGULAR_ENDINGS.iter().any(|ending| head.ends_with(ending));
    let people = ["men", "women", "people"].contains(&words[0]);
    let vowel = name.starts_with(['a', 'e', 'i', 'o'])
        || ["um", "up", "un"]
            .iter()
            .any(|start| name.starts_with(start))
            && !name.starts_with("uni")
        || name.starts_with("hour");
    if name.starts_with("flag of ") {
        format!("the {name}")
    } else if plural || people || MASS.iter().any(|mass| name.ends_with(mass)) {
        name.to_owned()
    } else if vowel {
        format!("an {name}")
    } else {
        format!("a {name}")
    }
}

/// What an image says when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OcrContent {
    /// A key with one digit or sign.
    Key(char),
    /// A letter, word or number.
    Text(&'static str),
    /// A clock face: hour 1–12 and minute 0 or 30.
    Time {
        /// Hour, 1–12.
        hour: u32,
        /// Minute, 0 or 30.
        minute: u32,
    },
    /// A flag, by its two letters.
    Code([char; 2]),
    /// Something that points.
    Direction(&'static str),
}

impl OcrContent {
    /// What `emoji` says, if it is one of those that can be read.
    pub fn of(emoji: &str) -> Option<OcrContent> {
        let points: Vec<u32> = emoji
            .chars()
            .map(u32::from)
            .filter(|&c| c != 0xfe0f)
            .collect();
        match points[..] {
            [key, 0x20e3] => char::from_u32(key).map(OcrContent::Key),
            [a @ 0x1f1e6..=0x1f1ff, b @ 0x1f1e6..=0x1f1ff] => {
                let letter = |point: u32| char::from(b'a' + (point - 0x1f1e6) as u8);
                Some(OcrContent::Code([letter(a), letter(b)]))
            }
            [full @ 0x1f550..=0x1f55b] => Some(OcrContent::Time {
                hour: full - 0x1f550 + 1,
                minute: 0,
            }),
            [half @ 0x1f55c..=0x1f567] => Some(OcrContent::Time {
                hour: half - 0x1f55c + 1,
                minute: 30,
            }),
            [point] => text(point)
                .map(OcrContent::Text)
                .or_else(|| direction(point).map(OcrContent::Direction)),
            _ => None,
        }
    }

    /// The answer: "5", "cool", "3:30", "fr", "up left".
    pub fn answer(&self) -> String {
        match self {
            OcrContent::Key(key) => key.to_string(),
            OcrContent::Text(text) => (*text).to_owned(),
            OcrContent::Time { hour, minute } => format!("{hour}:{minute:02}"),
            OcrContent::Code(letters) => letters.iter().collect(),
            OcrContent::Direction(direction) => (*direction).to_owned(),
        }
    }
}

fn text(point: u32) -> Option<&'static str> {
    Some(match point {
        0x1f170 => "a",
        0x1f171 => "b",
        0x1f18e => "ab",
        0x1f17e => "o",
        0x1f17f => "p",
        0x24c2 => "m",
        0x2139 => "i",
        0x1f191 => "cl",
        0x1f192 => "cool",
        0x1f193 => "free",
        0x1f194 => "id",
        0x1f195 => "new",
        0x1f196 => "ng",
        0x1f197 => "ok",
        0x1f198 => "sos",
        0x1f199 => "up!",
        0x1f19a => "vs",
        0x1f4af => "100",
        0x1f51f => "10",
        0x1f51e => "18",
        0x1f51d => "top",
        0x1f519 => "back",
        0x1f51a => "end",
        0x1f51b => "on!",
        0x1f51c => "soon",
        0x1f3e7 => "atm",
        0x1f6be => "wc",
        0x2122 => "tm",
        0x1f522 => "1234",
        0x1f524 => "abc",
        _ => return None,
    })
}

fn direction(point: u32) -> Option<&'static str> {
    Some(match point {
        0x2b06 | 0x1f446 | 0x1f53c | 0x23eb | 0x1f53a => "up",
        0x2b07 | 0x1f447 | 0x1f53d | 0x23ec | 0x1f53b => "down",
        0x2b05 | 0x1f448 | 0x25c0 | 0x23ea => "left",
        0x27a1 | 0x1f449 | 0x25b6 | 0x23e9 => "right",
        0x2196 => "up left",
        0x2197 => "up right",
        0x2198 => "down right",
        0x2199 => "down left",
        _ => return None,
    })
}

/// Whether an image of this concept still shows the concept when left and right are swapped: never for text, flags,
/// arrows, clocks, keys, maps, moons or anything named by a side.
pub fn mirror_safe(name: &str, category: &str, subcategory: &str) -> bool {
    let sided = [
        "left",
        "right",
        "clockwise",
        "facing",
        "bubble",
        "kana",
        "hundred",
        "arrow",
        "sign",
        "police",
        "taxi",
        "ambulance",
    ];
    let by_kind = match category {
        "Animals & Nature" | "Food & Drink" => true,
        "Smileys & Emotion" => subcategory != "emotion",
        "People & Body" => !subcategory.starts_with("hand"),
        "Activities" => !matches!(subcategory, "award-medal" | "game"),
        "Travel & Places" => matches!(
            subcategory,
            "place-geographic" | "transport-air" | "transport-ground" | "transport-water"
        ),
        _ => false,
    };
    by_kind && !sided.iter().any(|word| name.contains(word))
}
