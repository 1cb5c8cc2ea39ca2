//! What a record says of its image: a path below the data's own folder, or the file itself in base64.

use std::path::{Component, Path};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::skips::Reason;
use crate::images::decode::is_image;
use keel_base::error::Error;

/// Text longer than this is no path.
const LONGEST_PATH: usize = 1024;

/// Letters of a value that a message shows.
const SHOWN: usize = 60;

/// Base64 with or without the signs that fill it up, both of which are about.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where a record's image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImagePlace {
    /// A path below the folder.
    Path(String),
    /// The file itself.
    Bytes(Vec<u8>),
}

/// A problem and the reason it is counted under.
type Problem = (Reason, Error);

impl ImagePlace {
    /// Understands what a record says of its image; `name` is the record's, `unit` what holds the folder: a list, a table.
    ///
    /// # Errors
    /// The reason to count it under, and [`Error::Content`]: an address, a path that leaves the folder, or damaged base64. No
    /// message holds more than a few letters of the value.
    pub fn of(name: &str, unit: &str, value: &str) -> Result<ImagePlace, Problem> {
        let value = value.trim();
        if let Some(address) = value.strip_prefix("data:") {
            return in_data_address(name, address);
        }
        let packed = is_base64_of_an_image(value);
        if packed || value.len() > LONGEST_PATH {
            return unpacked(name, value).map(ImagePlace::Bytes);
        }
        if is_own_file(value) {
            return Ok(ImagePlace::Path(value.to_owned()));
        }
        let error = Error::content(
            name,
            format!(
                "its image is not a path below the {unit}'s folder ({})",
                shown(value)
            ),
            format!("put {unit} and images under one folder and write relative paths"),
        );
        Err((Reason::RefusedEntry, error))
    }
}

/// Whether a text is the base64 of an image, however short: it begins as that of a known kind, or it is long, has no ending as
/// the names of images have, and is base64 throughout.
fn is_base64_of_an_image(value: &str) -> bool {
    // Sixteen letters are twelve bytes: what the longest of the beginnings, WebP's, needs.
    const BEGINNING: usize = 16;
    // Two letters are too few to tell a BMP from a path.
    let is_known = |bytes: &[u8]| is_image(bytes) && !bytes.starts_with(b"BM");
    let beginning = value.get(..BEGINNING).map(|text| LENIENT.decode(text));
    if matches!(beginning, Some(Ok(bytes)) if is_known(&bytes)) {
        return true;
    }
    value.len() > SHOWN && !value.contains('.') && LENIENT.decode(value).is_ok()
}

/// The bytes behind `data:` (RFC 2397).
fn in_data_address(name: &str, address: &str) -> Result<ImagePlace, Problem> {
    let bad = |problem: &str| {
        let problem = format!("its image {problem} (data:{})", shown(address));
        let error = Error::content(name, problem, "write data:image/png;base64, and base64");
        (Reason::BadImage, error)
    };
    let (kind, content) = address
        .split_once(',')
        .ok_or_else(|| bad("is a data: address without a comma"))?;
    if !kind.ends_with(";base64") {
        return Err(bad("is a data: address that is not in base64"));
    }
    unpacked(name, content).map(ImagePlace::Bytes)
}

/// The bytes of base64, whose lines may be broken.
fn unpacked(name: &str, content: &str) -> Result<Vec<u8>, Problem> {
    let bytes = if content.contains(|letter: char| letter.is_ascii_whitespace()) {
        LENIENT.decode(content.split_ascii_whitespace().collect::<String>())
    } else {
        LENIENT.decode(content)
    };
    bytes.map_err(|_| {
        let letters = content.len();
        let problem = format!(
            "its image is neither a path nor base64: {letters} letters, {}",
            shown(content)
        );
        let error = Error::content(name, problem, "write the file anew");
        (Reason::BadImage, error)
    })
}

/// A value for messages: its first letters.
fn shown(value: &str) -> String {
    let mut short: String = value
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if value.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

/// A path below a folder, not above it and not from the root.
pub(crate) fn lies_below(path: &str) -> bool {
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    !path.is_empty() && Path::new(path).components().all(inside)
}

/// As [`lies_below`], and no address.
fn is_own_file(path: &str) -> bool {
    lies_below(path) && !path.contains("://")
}
