//! What is asked of each reader, whatever is in a file: a value that holds together or an error, and of files in which nothing
//! was changed, all that they hold. Each takes the choices that a file is made from, and says whether it was read.

use std::path::Path;
use std::sync::LazyLock;

use keel::data::image::{Image, ImageLimits};
use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::data::webdataset::{Shard, ShardItem, ShardLimits};
use keel::executor::SelectedDevice;
use keel::model::declare;
use keel::report::{RunRecord, run_page};
use keel::train::{BUILT_IN, Recipe, TrainOptions, Trainer, load, read_position};
use keel::weights::{Folder, ImageSize, SubModel};
use tempfile::TempDir;

use crate::{Choices, archive, checkpoint, image, parquet, records, valid_images, weights};

/// A reader's check: whether the file of these choices was read.
pub type Check = fn(&[u8]) -> bool;

/// All of them, by the kind of file.
pub const CHECKS: [(&str, Check); 7] = [
    ("archives", archives),
    ("images", images),
    ("records", lists),
    ("parquet", parquets),
    ("weights", weight_folders),
    ("checkpoints", checkpoints),
    ("runs", run_folders),
];

/// Pixels allowed here: more would be spent on filling memory.
const MAX_PIXELS: u64 = 1 << 14;

/// A folder in memory where there is one, for one file a time.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder can be made")
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).expect("the folder can be written");
}

/// An archive: members of the size that their headers say.
pub fn archives(choices: &[u8]) -> bool {
    let made = archive(&mut Choices::new(choices));
    let shard = Shard::from_bytes("input.tar", made.bytes);
    let (mut found, mut skipped, mut is_read) = (Vec::new(), 0, true);
    for step in shard.samples(ShardLimits::default()) {
        match step {
            Ok(ShardItem::Sample(sample)) => {
                for member in &sample.members {
                    let content = shard.read(member).expect("it lies in the archive");
                    assert_eq!(content.len() as u64, member.size);
                    found.push(content);
                }
            }
            Ok(ShardItem::Skipped(..)) => skipped += 1,
            Err(_) => is_read = false,
        }
    }
    if let Some(files) = made.files {
        assert!(is_read, "nothing was changed");
        let wanted: Vec<Vec<u8>> = files.into_iter().map(|(_, content)| content).collect();
        assert!(found.iter().all(|content| wanted.contains(content)));
        // Keys and endings that come again are left out, and said to be.
        assert!(found.len() == wanted.len() || skipped > 0, "{skipped}");
    }
    is_read
}

static IMAGES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(valid_images);

/// An image: of the size that it says, and never by a decoder that broke off.
pub fn images(choices: &[u8]) -> bool {
    let file = image(&mut Choices::new(choices), &IMAGES);
    let limits = ImageLimits {
        max_pixels: MAX_PIXELS,
    };
    match Image::decode("input", &file, &limits) {
        Ok(image) => {
            assert!(u64::from(image.width) * u64::from(image.height) <= MAX_PIXELS);
            let pixels = image.width as usize * image.height as usize;
            assert_eq!(image.rgba.len(), 4 * pixels);
            true
        }
        // A panic inside a decoder is caught and reported in these words.
        Err(error) => {
            assert!(!error.to_string().contains("gave up"), "{error}");
            false
        }
    }
}

/// Opens pairs and draws the first of them. Returns how many there are.
fn pairs_of(path: &Path) -> Option<usize> {
    let pairs = Pairs::open(&path.to_string_lossy(), PairLimits::default()).ok()?;
    for index in 0..pairs.len().min(16) {
        let _ = pairs.get(index);
    }
    Some(pairs.len())
}

/// A Parquet file: rows, counted ones, or a sentence.
pub fn parquets(choices: &[u8]) -> bool {
    let folder = folder();
    let name = "input.parquet";
    write(folder.path(), name, &parquet(&mut Choices::new(choices)));
    pairs_of(&folder.path().join(name)).is_some()
}

/// A list, lines or a table: every record of a valid one is used.
pub fn lists(choices: &[u8]) -> bool {
    let made = records(&mut Choices::new(choices));
    let folder = folder();
    let (_, picture) = IMAGES
        .iter()
        .find(|(name, _)| name == "png_rgb")
        .expect("a picture of that name is among them");
    write(folder.path(), "a.png", picture);
    write(folder.path(), made.name, &made.bytes);
    let path = match made.name {
        // The captions of a folder.
        "metadata.csv" => folder.path().to_owned(),
        name => folder.path().join(name),
    };
    let count = pairs_of(&path);
    if let Some(wanted) = made.records {
        let text = String::from_utf8_lossy(&made.bytes);
        assert!(count == Some(wanted), "{count:?}, not {wanted} of\n{text}");
    }
    count.is_some()
}

/// A folder of weights: its parts, or a sentence.
pub fn weight_folders(choices: &[u8]) -> bool {
    let made = weights(&mut Choices::new(choices));
    let folder = folder();
    write(folder.path(), "config.json", &made.config);
    write(folder.path(), "preprocessor_config.json", &made.processor);
    write(folder.path(), "model.safetensors", &made.tensors);
    let opened = Folder::open(folder.path());
    let parts = opened.as_ref().ok().and_then(|opened| {
        let _ = opened.processor(ImageSize::Fixed(224));
        let _ = opened.processor(ImageSize::OfProcessor(518));
        let _ = SubModel::connector(opened);
        SubModel::all(opened).ok()
    });
    assert!(!made.is_valid || parts.is_some(), "nothing was changed");
    parts.is_some()
}

/// A small run, and a checkpoint from within its one stage.
struct Run {
    recipe: Recipe,
    checkpoint: Vec<u8>,
}

/// How the checkpoint of [`Run`] is called.
const NAME: &str = "1-warm-up.step-1.safetensors";

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let tiny = BUILT_IN.iter().find(|(name, _)| *name == "tiny");
    let (_, text) = tiny.expect("a built-in recipe");
    let parts: Vec<&str> = text.split("[[stage]]").collect();
    let stage = parts
        .iter()
        .find(|part| part.contains("name = \"warm-up\"\n"));
    let text = format!("{}[[stage]]{}", parts[0], stage.expect("a stage of it"));
    let sets = ["stage.warm-up.steps=2", "stage.warm-up.batch_size=2"].map(str::to_owned);
    let recipe = Recipe::parse("tiny", &text, &sets).expect("it is valid");
    let folder = folder();
    let out = folder.path().join("run");
    let options = TrainOptions {
        out: Some(out.clone()),
        save_every: 1,
        ..TrainOptions::new(SelectedDevice::processor(1))
    };
    let trained = Trainer::new(recipe.clone(), options, None).and_then(|mut run| run.run());
    trained.expect("it can be trained");
    let checkpoint = std::fs::read(out.join("checkpoints").join(NAME));
    let checkpoint = checkpoint.expect("it was saved after its first step");
    Run { recipe, checkpoint }
});

/// A checkpoint: a position and values for the model, or a sentence.
pub fn checkpoints(choices: &[u8]) -> bool {
    let Run {
        recipe,
        checkpoint: valid,
    } = &*RUN;
    let bytes = checkpoint(&mut Choices::new(choices), valid);
    let folder = folder();
    write(folder.path(), NAME, &bytes);
    let path = folder.path().join(NAME);
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("it is valid");
    let mut given = 0;
    let loaded = load(&path, &layout, None, &mut |_, values| {
        given += values.len();
        Ok(())
    });
    let position = read_position(&path);
    if loaded.is_ok() {
        let entries = layout.entries().iter();
        let wanted: usize = entries.map(|entry| entry.spec.shape.numel()).sum();
        assert_eq!(given, wanted);
        assert!(position.is_ok());
    } else {
        assert_eq!(given, 0, "nothing is given of a file that is refused");
    }
    loaded.is_ok()
}

/// A run that is taken up from such a checkpoint, and its report: to the end of the run, or a sentence.
pub fn run_folders(choices: &[u8]) -> bool {
    let Run {
        recipe,
        checkpoint: valid,
    } = &*RUN;
    let mut choices = Choices::new(choices);
    let folder = folder();
    let run = folder.path();
    std::fs::create_dir(run.join("checkpoints")).expect("the folder can be written");
    write(run, "recipe.toml", recipe.to_toml().as_bytes());
    let row = br#"{"kind": "step", "stage": "warm-up", "step": 1, "loss": 6.1, "gradient_norm": 1.0,
        "learning_rate": 1e-3, "images_per_second": 5.0, "tokens_per_second": 9.0, "share_of_peak": 0.1}"#;
    let row = crate::changed_json(&mut choices, row);
    write(run, "metrics.jsonl", &[&row[..], b"\n"].concat());
    let bytes = checkpoint(&mut choices, valid);
    write(&run.join("checkpoints"), NAME, &bytes);
    let options = TrainOptions {
        resume: Some(run.to_owned()),
        accept_changes: true,
        ..TrainOptions::new(SelectedDevice::processor(1))
    };
    let trained = Trainer::new(recipe.clone(), options, None).and_then(|mut run| run.run());
    if let Ok(record) = RunRecord::open(run) {
        assert!(run_page(&record).contains("</html>"));
    }
    trained.is_ok()
}
