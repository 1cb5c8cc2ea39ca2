//! `cargo tool emoji`: rebuilds the embedded image–text pairs from the packages their artists publish.
//!
//! Reads three npm packages (two drawings of every emoji, and the Unicode names and keywords), reduces every image
//! to a palette, splits the concepts into train and held-out, and writes one WebDataset shard per artist into assets/.
//! The same packages give the same bytes. It does not choose captions: those are made from the shards, at run time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::palette;

/// The packages by name and version; the file of each is what `npm pack` calls it.
const PACKAGES: [(&str, &str); 4] = [
    ("emoji-datasource-google", "16.0.0"),
    ("emoji-datasource-twitter", "16.0.0"),
    ("cldr-annotations-full", "48.2.0"),
    ("cldr-annotations-derived-full", "48.2.0"),
];

/// Width and height of every image, pixels.
const SIZE: u32 = 64;

/// Images get the fewest colours that keep their error below this peak signal-to-noise ratio, decibels.
const IMAGE_PSNR: f64 = 40.0;

/// One in this many concepts of every subcategory is held out.
const HELD_OUT_ONE_IN: usize = 10;

type Outcome<T> = Result<T, String>;

/// Rebuilds `assets/noto.tar.gz` and `assets/twemoji.tar.gz`; `--packages DIR` names a folder that holds the packages.
pub fn run(arguments: &[String]) -> Outcome<()> {
    let packages = match arguments {
        [] => PathBuf::from("target/emoji"),
        [flag, folder] if flag == "--packages" => PathBuf::from(folder),
        _ => return Err("usage: cargo tool emoji [--packages DIR]".to_owned()),
    };
    fs::create_dir_all(&packages).map_err(|e| format!("{}: {e}", packages.display()))?;
    let archives = PACKAGES
        .iter()
        .map(|(name, version)| fetch(&packages, name, version))
        .collect::<Outcome<Vec<_>>>()?;

    let google = unpack(&archives[0], |path| {
        path == "package/emoji.json" || path.starts_with("package/img/google/64/")
    })?;
    let twitter = unpack(&archives[1], |path| {
        path.starts_with("package/img/twitter/64/")
    })?;
    let names = annotations(
        &unpack(&archives[2], |path| {
            path == "package/annotations/en/annotations.json"
        })?,
        "annotations",
    )?;
    let derived_names = annotations(
        &unpack(&archives[3], |path| {
            path == "package/annotationsDerived/en/annotations.json"
        })?,
        "annotationsDerived",
    )?;

    let list: Vec<Value> = serde_json::from_slice(
        google
            .get("package/emoji.json")
            .ok_or("emoji-datasource-google: no emoji.json")?,
    )
    .map_err(|e| format!("emoji.json: {e}"))?;
    let mut concepts = list
        .iter()
        .filter(|entry| {
            entry["has_img_google"] == true
                && entry["has_img_twitter"] == true
                && entry["category"] != "Component"
        })
        .map(|entry| Concept::new(entry, &names, &derived_names))
        .collect::<Outcome<Vec<_>>>()?;
    concepts.sort_by(|a, b| (a.order, &a.codepoints).cmp(&(b.order, &b.codepoints)));
    hold_out(&mut concepts);

    let held_out = concepts.iter().filter(|concept| concept.held_out).count();
    println!("{} concepts, {held_out} of them held out", concepts.len());
    for (artist, vendor, files) in [
        ("noto", "google", &google),
        ("twemoji", "twitter", &twitter),
    ] {
        let path = Path::new("assets").join(format!("{artist}.tar.gz"));
        write_shard(&path, vendor, files, &concepts)?;
    }
    Ok(())
}

/// One emoji of the list, with its English words.
struct Concept {
    codepoints: String,
    image: String,
    order: u64,
    subcategory: String,
    held_out: bool,
    sample: Map<String, Value>,
}

impl Concept {
    fn new(
        entry: &Value,
        names: &Map<String, Value>,
        derived_names: &Map<String, Value>,
    ) -> Outcome<Concept> {
        let text = |key: &str| {
            entry[key]
                .as_str()
                .map(str::to_owned)
                .ok_or(format!("emoji.json: no {key} in {entry}"))
        };
        let unified = text("unified")?;
        let emoji = unified
            .split('-')
            .map(|digits| {
                u32::from_str_radix(digits, 16)
                    .ok()
                    .and_then(char::from_u32)
            })
            .collect::<Option<String>>()
            .ok_or(format!(
                "emoji.json: {unified} is not a list of code points"
            ))?;
        // Unicode's list leaves the emoji-presentation selector out of its keys.
        let bare: String = emoji.chars().filter(|&c| c != '\u{fe0f}').collect();
        let words = names
            .get(&bare)
            .or_else(|| derived_names.get(&bare))
            .ok_or(format!(
                "{unified}: no Unicode name; is the annotations package too old?"
            ))?;
        let name = human_name(
            words["tts"][0]
                .as_str()
                .ok_or(format!("{unified}: empty name"))?,
        );
        if !name.is_ascii() {
            return Err(format!(
                "{name}: a letter is missing from the table in `ascii`"
            ));
        }
        let mut keywords: Vec<String> = Vec::new();
        for word in words["default"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            let word = ascii(word).to_lowercase();
            if word.is_ascii() && !keywords.contains(&word) {
                keywords.push(word);
            }
        }
        let subcategory = text("subcategory")?;
        let sample = json!({
            "emoji": emoji,
            "name": name,
            "short_names": entry["short_names"],
            "keywords": keywords,
            "category": entry["category"],
            "subcategory": subcategory,
        });
        Ok(Concept {
            codepoints: unified.to_lowercase(),
            image: text("image")?,
            order: entry["sort_order"].as_u64().unwrap_or(u64::MAX),
            subcategory,
            held_out: false,
            sample: sample
                .as_object()
                .expect("written as an object above")
                .clone(),
        })
    }
}

/// Unicode's short name as a person would write it in a caption: lower case, plain letters.
fn human_name(name: &str) -> String {
    let name = ascii(name).to_lowercase();
    let Some((thing, detail)) = name.split_once(": ") else {
        return name;
    };
    let all = match detail.rsplit_once(", ") {
        Some((first, last)) => format!("{first} and {last}"),
        None => detail.to_owned(),
    };
    match (thing, detail) {
        ("keycap", key) => format!("keycap {key}"),
        ("couple with heart", _) => format!("couple of {all} with heart"),
        ("flag" | "family" | "kiss", _) => format!("{thing} of {all}"),
        (person, "facing right") => format!("{person} facing right"),
        (person, "bald") => format!("bald {person}"),
        (person, "beard") => format!("{person} with a beard"),
        (person, hair) => format!("{person} with {hair}"),
    }
}

/// Typographic signs and accented letters that occur in the English names, as plain letters.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '’' | '‘' => '\'',
            '“' | '”' => '"',
            'Å' => 'A',
            'ã' | 'á' | 'à' => 'a',
            'ç' => 'c',
            'é' | 'è' => 'e',
            'í' => 'i',
            'ñ' => 'n',
            'ô' | 'ó' => 'o',
            'ü' => 'u',
            other => other,
        })
        .collect()
}

/// Marks one in ten of every subcategory, rounded half up: the ones whose code points hash lowest.
///
/// Subcategories of up to four members hold nothing out, so each keeps something to learn from.
fn hold_out(concepts: &mut [Concept]) {
    let mut by_subcategory: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, concept) in concepts.iter().enumerate() {
        by_subcategory
            .entry(concept.subcategory.clone())
            .or_default()
            .push(index);
    }
    for mut members in by_subcategory.into_values() {
        members.sort_by_key(|&index| fnv1a(concepts[index].codepoints.as_bytes()));
        let count = (members.len() + HELD_OUT_ONE_IN / 2) / HELD_OUT_ONE_IN;
        for &index in &members[..count] {
            concepts[index].held_out = true;
        }
    }
    for concept in concepts {
        let split = if concept.held_out {
            "held-out"
        } else {
            "train"
        };
        concept.sample.insert("split".to_owned(), split.into());
    }
}

/// The 64-bit FNV-1a hash: the split must not move when a library changes its hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The path of a package's archive in `folder`, asked of npm when it is not there.
fn fetch(folder: &Path, name: &str, version: &str) -> Outcome<PathBuf> {
    let path = folder.join(format!("{name}-{version}.tgz"));
    if !path.exists() {
        println!("npm pack {name}@{version}");
        let status = Command::new("npm")
            .args(["pack", "--silent", &format!("{name}@{version}")])
            .current_dir(folder)
            .status()
            .map_err(|e| {
                format!(
                    "npm: {e}; install it, or put {} there yourself",
                    path.display()
                )
            })?;
        if !status.success() || !path.exists() {
            return Err(format!(
                "npm pack {name}@{version} did not make {}",
                path.display()
            ));
        }
    }
    Ok(path)
}

/// The members of a gzipped tar whose path `wanted` accepts.
fn unpack(archive: &Path, wanted: impl Fn(&str) -> bool) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let fail = |e: std::io::Error| format!("{}: {e}", archive.display());
    let file = fs::File::open(archive).map_err(fail)?;
    let mut files = BTreeMap::new();
    let mut reader = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in reader.entries().map_err(fail)? {
        let mut entry = entry.map_err(fail)?;
        let path = entry.path().map_err(fail)?.to_string_lossy().into_owned();
        if wanted(&path) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(fail)?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

/// The table of names and keywords inside one annotations file, whose outer key is `kind`.
fn annotations(files: &BTreeMap<String, Vec<u8>>, kind: &str) -> Outcome<Map<String, Value>> {
    let bytes = files
        .values()
        .next()
        .ok_or(format!("{kind}: no English annotations"))?;
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("{kind}: {e}"))?;
    value[kind]["annotations"]
        .as_object()
        .cloned()
        .ok_or(format!("{kind}: no table inside"))
}

/// Writes one artist's drawings of all concepts, in the order given, as a gzipped WebDataset shard.
fn write_shard(
    path: &Path,
    vendor: &str,
    files: &BTreeMap<String, Vec<u8>>,
    concepts: &[Concept],
) -> Outcome<()> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut shard = tar::Builder::new(Vec::new());
    let (mut image_bytes, mut colours, mut worst) = (0, 0, f64::INFINITY);
    for concept in concepts {
        let source = format!("package/img/{vendor}/{SIZE}/{}", concept.image);
        let bytes = files
            .get(&source)
            .ok_or(format!("{source} is missing from its package"))?;
        let pixels = decode(bytes).map_err(|e| format!("{source}: {e}"))?;
        let reduced = palette::reduce(&pixels, IMAGE_PSNR);
        let image = palette::encode(&reduced, SIZE);
        image_bytes += image.len();
        colours += reduced.colours.len();
        worst = worst.min(reduced.psnr);
        let text = serde_json::to_vec(&concept.sample).map_err(|e| e.to_string())?;
        append(&mut shard, &format!("{}.json", concept.codepoints), &text).map_err(fail)?;
        append(&mut shard, &format!("{}.png", concept.codepoints), &image).map_err(fail)?;
    }
    let tar = shard.into_inner().map_err(fail)?;
    let mut gzip = flate2::GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), flate2::Compression::best());
    gzip.write_all(&tar).map_err(fail)?;
    let bytes = gzip.finish().map_err(fail)?;
    fs::create_dir_all("assets").map_err(fail)?;
    fs::write(path, &bytes).map_err(fail)?;
    println!(
        "{}: {} bytes, of which images {image_bytes}; {:.1} colours an image, worst {worst:.1} dB",
        path.display(),
        bytes.len(),
        colours as f64 / concepts.len() as f64,
    );
    Ok(())
}

/// Appends a regular file with nothing in its header that varies between machines.
fn append(shard: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    shard.append_data(&mut header, name, bytes)
}

/// A PNG of `SIZE` × `SIZE` in any colour type, as RGBA pixels.
fn decode(bytes: &[u8]) -> Outcome<Vec<[u8; 4]>> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let mut buffer = vec![0; reader.output_buffer_size().ok_or("too large")?];
    let frame = reader.next_frame(&mut buffer).map_err(|e| e.to_string())?;
    if (frame.width, frame.height) != (SIZE, SIZE) {
        return Err(format!(
            "wanted {SIZE}x{SIZE}, found {}x{}",
            frame.width, frame.height
        ));
    }
    let buffer = &buffer[..frame.buffer_size()];
    Ok(match frame.color_type {
        png::ColorType::Rgba => buffer.chunks(4).map(|p| [p[0], p[1], p[2], p[3]]).collect(),
        png::ColorType::Rgb => buffer.chunks(3).map(|p| [p[0], p[1], p[2], 255]).collect(),
        png::ColorType::GrayscaleAlpha => {
            buffer.chunks(2).map(|p| [p[0], p[0], p[0], p[1]]).collect()
        }
        png::ColorType::Grayscale => buffer.iter().map(|&v| [v, v, v, 255]).collect(),
        png::ColorType::Indexed => return Err("the palette was not expanded".to_owned()),
    })
}
