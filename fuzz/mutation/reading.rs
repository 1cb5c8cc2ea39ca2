//! What Keel reads from a file, as plain data: tools/differential.py holds it to what the readers of Python read.

use std::path::Path;

use keel::data::archive::{ArchiveItem, Entries, InputFile};
use keel::data::image::{Image, ImageLimits};
use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::error::Result;
use keel::weights::Folder;
use serde_json::{Value, json};

use crate::{Choices, archive, choices_of, image, parquet, records, valid_images, weights};

/// What is written and read.
pub const KINDS: [&str; 5] = ["archives", "images", "records", "parquet", "weights"];

/// Writes the file of `seed` of one of the [`KINDS`] into `folder`, which is empty, and reads it: `read`, or `refused` with the
/// sentence.
///
/// # Panics
/// On another kind, and where the folder cannot be written.
pub fn reading(kind: &str, seed: u64, folder: &Path) -> Value {
    let bytes = choices_of(seed);
    let mut choices = Choices::new(&bytes);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    };
    let valid = valid_images();
    let (name, read) = match kind {
        "archives" => {
            let path = write("input.tar", &archive(&mut choices).bytes);
            ("input.tar", entries(&path))
        }
        "images" => {
            let path = write("input.image", &image(&mut choices, &valid));
            ("input.image", pixels(&path, folder))
        }
        "records" => {
            let made = records(&mut choices);
            let picture = valid.iter().find(|(name, _)| name == "png_rgb");
            write("a.png", &picture.expect("there is one").1);
            let path = write(made.name, &made.bytes);
            let is_folder = made.name == "metadata.csv";
            (made.name, words(if is_folder { folder } else { &path }))
        }
        "parquet" => {
            let path = write("input.parquet", &parquet(&mut choices));
            ("input.parquet", words(&path))
        }
        "weights" => {
            let made = weights(&mut choices);
            write("config.json", &made.config);
            write("model.safetensors", &made.tensors);
            ("model.safetensors", tensors(folder))
        }
        other => panic!("{other} is none of {KINDS:?}"),
    };
    match read {
        Ok(read) => json!({"input": name, "read": read}),
        Err(problem) => json!({"input": name, "refused": problem.to_string()}),
    }
}

/// Names, sizes and CRC-32 of the regular files of an archive.
fn entries(path: &Path) -> Result<Value> {
    let source = InputFile::open(path)?;
    let mut found = Vec::new();
    for item in Entries::new(&source) {
        if let ArchiveItem::File(entry) = item? {
            let mut crc = flate2::Crc::new();
            crc.update(&source.read(entry.offset, entry.size)?);
            found.push(json!([entry.name, entry.size, crc.sum()]));
        }
    }
    Ok(found.into())
}

/// Width and height; the pixels are written beside the image.
fn pixels(path: &Path, folder: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).expect("it was just written");
    let limits = ImageLimits {
        max_pixels: 1 << 16,
    };
    let image = Image::decode("input", &bytes, &limits)?;
    std::fs::write(folder.join("pixels"), &image.rgba).expect("the folder can be written");
    Ok(json!([image.width, image.height]))
}

/// The words of every pair that can be used.
fn words(path: &Path) -> Result<Value> {
    let pairs = Pairs::open(&path.to_string_lossy(), PairLimits::default())?;
    let mut found = Vec::new();
    for index in 0..pairs.len() {
        if let Ok(pair) = pairs.get(index) {
            let mut texts: Vec<String> = pair.prompt.into_iter().collect();
            texts.push(pair.caption);
            texts.extend(
                pair.further
                    .into_iter()
                    .flat_map(|turn| [turn.question, turn.answer]),
            );
            found.push(texts);
        }
    }
    Ok(json!({"pairs": pairs.len(), "words": found}))
}

/// Types and shapes of tensors by name.
fn tensors(folder: &Path) -> Result<Value> {
    let opened = Folder::open(folder)?;
    let tensors = opened.tensors().iter();
    let tensors = tensors.map(|(name, place)| (name.clone(), json!(place.shape)));
    Ok(Value::Object(tensors.collect()))
}
