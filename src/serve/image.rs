//! Images of a request: bytes in the request itself and nothing else. No address is followed and no file is read for one.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value as Json;

use super::fault::Fault;
use keel_data::image::{Image, ImageLimits};

/// Base64 with or without the signs that fill it up.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What an image has to be.
const WANTED: &str = "send the image itself, as data:image/png;base64,…";

/// How many images messages have, before one of them is decoded.
pub(crate) fn count(messages: &[Json]) -> usize {
    let parts = messages
        .iter()
        .filter_map(|message| message["content"].as_array());
    let is_image = |part: &&Json| part["type"] == "image_url";
    parts.flatten().filter(is_image).count()
}

/// Decodes the image that stands at `at` of a request.
pub(crate) fn read(at: &str, value: &Json) -> Result<Image, Fault> {
    if let Some(detail) = value.get("detail").filter(|detail| !detail.is_null())
        && !["auto", "low", "high"].map(Json::from).contains(detail)
    {
        let message = format!("{at}.detail must be auto, low or high, and is {detail}");
        return Err(Fault::request(format!("{at}.detail"), message));
    }
    let at = format!("{at}.url");
    let Some(url) = value["url"].as_str() else {
        return Err(Fault::request(
            &*at,
            format!("{at} must be a string: {WANTED}"),
        ));
    };
    let bytes = bytes_of(&at, url)?;
    Image::decode(&at, &bytes, &ImageLimits::default())
        .map_err(|problem| Fault::coded(&at, "invalid_image", problem.to_string()))
}

fn bytes_of(at: &str, url: &str) -> Result<Vec<u8>, Fault> {
    let refuse = |what: &str| {
        let message = format!("{at} is {what}; {WANTED}");
        Fault::coded(at, "invalid_image_url", message)
    };
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    if !scheme.eq_ignore_ascii_case("data") {
        return Err(match scheme.len() {
            // A name of a file, or a letter of a drive.
            0 | 1 => refuse("no data: URL, and files of the server are not read"),
            2..=16 => refuse(&format!(
                "an address ({scheme}:), and nothing is fetched for a request"
            )),
            _ => refuse("no data: URL"),
        });
    }
    let Some((kind, data)) = rest.split_once(',') else {
        return Err(refuse("a data: URL without data"));
    };
    let kind = kind.to_ascii_lowercase();
    if !kind.ends_with(";base64") {
        return Err(refuse("a data: URL that is not in base64"));
    }
    if !kind.starts_with("image/") {
        return Err(refuse("a data: URL of no image type"));
    }
    BASE64
        .decode(data)
        .map_err(|problem| refuse(&format!("a data: URL whose base64 is damaged ({problem})")))
}
