//! The pairs that come with the program: 1,906 emoji concepts, each drawn by two groups of vendors, with English words.
//!
//! Made by `cargo tool emoji`; notices in assets/NOTICE.md. Noto is for training, Twemoji is the test of another style
//! and is never trained on. Read through the same shard reader as anyone's data.

use std::io::{Cursor, Read};

use rayon::prelude::*;
use serde::Deserialize;

use keel_base::error::{Error, Result};
use keel_data::image::{Image, ImageLimits};
use keel_data::webdataset::{Shard, ShardItem, ShardLimits};

/// The Noto drawings, 64 × 64, a gzipped shard.
pub static NOTO: &[u8] = include_bytes!("../../assets/noto.tar.gz");
/// The Twemoji drawings, 64 × 64, a gzipped shard.
pub static TWEMOJI: &[u8] = include_bytes!("../../assets/twemoji.tar.gz");

/// Width and height of every embedded image, pixels.
pub const SIZE: u32 = 64;

/// Who drew an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Google's Noto Emoji: trained on.
    Noto,
    /// Twemoji: another style, only for tests.
    Twemoji,
}

impl Vendor {
    /// Both.
    pub const ALL: [Vendor; 2] = [Vendor::Noto, Vendor::Twemoji];

    /// The name in lower case, as tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Vendor::Noto => "noto",
            Vendor::Twemoji => "twemoji",
        }
    }
}

/// One emoji: its words, and its image by every vendor.
#[derive(Debug, Clone)]
pub struct EmbeddedConcept {
    /// Lower-case hexadecimal code points, joined by hyphens: the key in both shards.
    pub codepoints: String,
    /// The emoji itself.
    pub emoji: String,
    /// What a person would call it, lower-case ASCII: "flag of kenya". No two concepts share a name.
    pub name: String,
    /// Chat names without colons: "flag-ke".
    pub short_names: Vec<String>,
    /// English keywords, lower-case ASCII.
    pub keywords: Vec<String>,
    /// One of nine: "Flags".
    pub category: String,
    /// One of 98: "country-flag".
    pub subcategory: String,
    /// Whether it is kept out of training; the same for both vendors.
    pub held_out: bool,
    /// The drawings of [`Vendor::ALL`], as files.
    pngs: [Vec<u8>; 2],
}

impl EmbeddedConcept {
    /// Decodes the drawing by this vendor, transparent around it.
    ///
    /// # Errors
    /// [`Error::Content`] when the drawing is damaged or not of the embedded size.
    pub fn image(&self, vendor: Vendor) -> Result<Image> {
        let png = &self.pngs[vendor as usize];
        let image = Image::decode(&self.file(vendor), png, &ImageLimits::default())?;
        match (image.width, image.height) {
            (SIZE, SIZE) => Ok(image),
            _ => Err(self.damaged(vendor, format!("it is not {SIZE} x {SIZE}"))),
        }
    }

    /// The colours of the drawing by this vendor, straight sRGB with alpha, each with how many pixels have it. Counted on its
    /// file, whose pixels are places in a palette: a run asks it of all concepts, and decodes but some.
    ///
    /// # Errors
    /// [`Error::Content`] when the drawing is damaged or has no palette.
    pub fn colours(&self, vendor: Vendor) -> Result<Vec<([u8; 4], u64)>> {
        let damaged = |problem: png::DecodingError| self.damaged(vendor, problem.to_string());
        let mut decoder = png::Decoder::new(Cursor::new(&self.pngs[vendor as usize]));
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(damaged)?;
        let mut packed = vec![0; reader.output_buffer_size().unwrap_or(0)];
        reader.next_frame(&mut packed).map_err(damaged)?;
        let info = reader.info();
        let (Some(palette), false) = (&info.palette, packed.is_empty()) else {
            return Err(self.damaged(vendor, "it has no palette".into()));
        };
        let alphas = info.trns.as_deref().unwrap_or_default();
        let mut of_bytes = [0; 256];
        // Packed bytes are counted, and then what they stand for: 256 cases instead of a loop over bits for each byte.
        for byte in packed {
            of_bytes[usize::from(byte)] += 1;
        }
        // Several pixels to a byte where the palette is small; a row of 64 ends with its byte.
        let bits = info.bit_depth as usize;
        let mut counts = [0; 256];
        for (byte, count) in of_bytes.into_iter().enumerate() {
            for shift in (0..8).step_by(bits) {
                counts[(byte >> shift) % (1 << bits)] += count;
            }
        }
        let colours = palette.as_chunks::<3>().0.iter().zip(counts).enumerate();
        let colours = colours.map(|(place, (&[r, g, b], count))| {
            ([r, g, b, alphas.get(place).copied().unwrap_or(255)], count)
        });
        Ok(colours.filter(|(_, count)| *count > 0).collect())
    }

    fn file(&self, vendor: Vendor) -> String {
        let shard = vendor.name();
        format!("the embedded shard {shard}: {}.png", self.codepoints)
    }

    fn damaged(&self, vendor: Vendor, problem: String) -> Error {
        let remedy = "rebuild it with cargo tool emoji";
        Error::content(self.file(vendor), problem, remedy)
    }
}

/// All embedded concepts, in Unicode's order.
#[derive(Debug)]
pub struct EmbeddedConcepts {
    /// One per emoji.
    pub entries: Vec<EmbeddedConcept>,
}

/// What stands in a sample's JSON member.
#[derive(Deserialize)]
struct Words {
    emoji: String,
    name: String,
    short_names: Vec<String>,
    keywords: Vec<String>,
    category: String,
    subcategory: String,
    split: String,
}

impl EmbeddedConcepts {
    /// Unpacks both shards, on all threads. Drawings are decoded when they are asked for: a run sees but some of them.
    ///
    /// # Errors
    /// [`Error::Content`] when a shard is damaged or the two do not hold the same concepts.
    pub fn load(noto: &[u8], twemoji: &[u8]) -> Result<EmbeddedConcepts> {
        let (noto, twemoji) = rayon::join(
            || read_shard("the embedded shard noto", noto),
            || read_shard("the embedded shard twemoji", twemoji),
        );
        let (noto, twemoji) = (noto?, twemoji?);
        let same = noto
            .iter()
            .map(|drawn| &drawn.0)
            .eq(twemoji.iter().map(|drawn| &drawn.0));
        if !same {
            return Err(Error::content(
                "the embedded shards",
                "they do not hold the same concepts in the same order",
                "rebuild them with cargo tool emoji",
            ));
        }
        let entries = noto
            .into_iter()
            .zip(twemoji)
            .map(
                |((codepoints, words, noto), (_, _, twemoji))| EmbeddedConcept {
                    codepoints,
                    emoji: words.emoji,
                    name: words.name,
                    short_names: words.short_names,
                    keywords: words.keywords,
                    category: words.category,
                    subcategory: words.subcategory,
                    held_out: words.split == "held-out",
                    pngs: [noto, twemoji],
                },
            )
            .collect();
        Ok(EmbeddedConcepts { entries })
    }
}

/// The key, words and drawing of every sample of a gzipped shard.
fn read_shard(name: &str, gzip: &[u8]) -> Result<Vec<(String, Words, Vec<u8>)>> {
    let damaged =
        |problem: String| Error::content(name, problem, "rebuild it with cargo tool emoji");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(gzip)
        .read_to_end(&mut tar)
        .map_err(|e| damaged(format!("it cannot be unpacked ({e})")))?;
    let shard = Shard::from_bytes(name, tar);
    let samples = shard
        .samples(ShardLimits::default())
        .map(|step| match step? {
            ShardItem::Sample(sample) => Ok(sample),
            ShardItem::Skipped(_, key, reason) => Err(damaged(format!("{key}: {reason}"))),
        })
        .collect::<Result<Vec<_>>>()?;
    samples
        .into_par_iter()
        .map(|sample| {
            let read = |ending: &str| {
                let member = sample.member(&[ending]);
                shard.read(member.ok_or_else(|| damaged(format!("{}: no {ending}", sample.key)))?)
            };
            let words: Words = serde_json::from_slice(&read("json")?)
                .map_err(|e| damaged(format!("{}.json: {e}", sample.key)))?;
            let png = read("png")?;
            Ok((sample.key, words, png))
        })
        .collect()
}
