//! Runs that begin from folders: the weights are in the model, bit for bit, and what does not go together is refused.

use std::fs;
use std::path::Path;

use bytemuck::cast_slice;
use keel::weights::{Folder, SubModel};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use super::{hub, values};
use crate::command::{keel, tiny_recipe};

/// The small model of `family` with `rows` rows of embeddings and of the output product, its 64 over and over.
pub(super) fn language_with_rows(family: &str, folder: &Path, rows: usize) {
    fs::create_dir(folder).unwrap();
    let text = fs::read_to_string(hub(family).join("config.json")).unwrap();
    let mut config: Json = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = json!(rows);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(hub(family).join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let tables: Vec<(String, Vec<u8>)> = ["model.embed_tokens.weight", "lm_head.weight"]
        .into_iter()
        .filter_map(|name| {
            let table = all.tensor(name).ok()?;
            let row = table.data().len() / 64;
            let bytes = table.data().iter().cycle().take(rows * row);
            Some((name.to_owned(), bytes.copied().collect()))
        })
        .collect();
    let views =
        all.iter().map(
            |(other, view)| match tables.iter().find(|(name, _)| name == other) {
                Some((_, table)) => {
                    let shape = vec![rows, view.shape()[1]];
                    (other, TensorView::new(view.dtype(), shape, table).unwrap())
                }
                None => (other, view),
            },
        );
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// Holds a module of the run's last checkpoint against the folder it began from.
fn holds(run: &Path, folder: &Path) -> usize {
    let folder = Folder::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let part = &SubModel::all(&folder).unwrap_or_else(|e| panic!("{e}"))[0];
    let want = values(&folder, part);
    let checkpoint = keel::train::newest_checkpoint(run)
        .unwrap()
        .expect("the stage was saved");
    let bytes = fs::read(checkpoint).unwrap();
    let saved = SafeTensors::deserialize(&bytes).unwrap();
    for entry in part.layout().entries() {
        let name = &entry.spec.name;
        let tensor = saved.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32);
        let want = &want[entry.offset..entry.offset + entry.spec.shape.numel()];
        let want: &[u8] = cast_slice(want);
        assert!(tensor.data() == want, "{name} is not the folder's");
    }
    part.layout().entries().len()
}

#[test]
fn a_run_begins_from_the_weights_of_both_folders_and_is_continued_without_naming_them() {
    let folder = tempfile::tempdir().unwrap();
    let stages = [
        "warm-start-vision",
        "warm-start-language",
        "warm-up",
        "world-knowledge",
    ];
    fs::write(folder.path().join("my.toml"), tiny_recipe(&stages)).unwrap();
    // The embedded tokeniser's 512.
    language_with_rows("qwen2", &folder.path().join("decoder"), 512);
    let vision = hub("aimv2").display().to_string();
    let mut args = [
        "train", "--device", "cpu", "--recipe", "my.toml", "--vision", &vision,
    ]
    .to_vec();
    args.extend([
        "--language",
        "decoder",
        "--no-evaluation",
        "--max-steps",
        "2",
        "--out",
        "run",
    ]);
    // The connector alone is trained in the first stage: tower and decoder end it as they were.
    args.extend(["--set", "stage.world-knowledge.steps=1"]);
    let answer = keel(folder.path(), &args).fine();
    assert!(
        answer
            .stdout
            .contains("left out: warm-start-vision, warm-start-language"),
        "{answer:#?}"
    );
    let run = folder.path().join("run");
    let after_all = keel::train::newest_checkpoint(&run).unwrap().unwrap();
    let saved = keel::train::stage_checkpoints(&run).unwrap();
    assert_eq!(saved.len(), 2, "{saved:?}");
    fs::remove_file(after_all).unwrap();
    // Five beside the blocks and six in each; two and seven in the decoder.
    assert_eq!(holds(&run, &hub("aimv2")), 17);
    assert_eq!(holds(&run, &folder.path().join("decoder")), 16);

    // Without a checkpoint the run begins again, from the folders that its recipe names.
    let first = keel::train::newest_checkpoint(&run).unwrap().unwrap();
    let before = fs::read(&first).unwrap();
    fs::remove_file(&first).unwrap();
    let args = [
        "train",
        "--device",
        "cpu",
        "--resume",
        "run",
        "--no-evaluation",
        "--max-steps",
        "2",
    ];
    keel(folder.path(), &args).fine();
    assert!(
        fs::read(&first).unwrap() == before,
        "the run began otherwise"
    );
}

/// The small Qwen3 with a row for every id of the golden tokeniser, its 64 rows over and over, the tokeniser and its chats.
fn language_with_a_tokeniser(folder: &Path, rows: usize) {
    language_with_rows("qwen3", folder, rows);
    let golden = Path::new("verify/goldens/chat/tokenizer.json");
    fs::copy(golden, folder.join("tokenizer.json")).unwrap();
    let template = Path::new("verify/goldens/chat/templates/qwen3.jinja");
    fs::copy(template, folder.join("chat_template.jinja")).unwrap();
}

#[test]
fn a_run_speaks_the_tokeniser_of_its_language_model_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let stages = ["warm-start-language", "warm-up", "world-knowledge"];
    fs::write(path.join("my.toml"), tiny_recipe(&stages)).unwrap();
    // As many rows as the file has ids: three more are made for images.
    language_with_a_tokeniser(&path.join("decoder"), 426);
    let mut args = "train --device cpu --recipe my.toml --language decoder --max-steps 1 --no-evaluation --out run"
        .split(' ')
        .collect::<Vec<_>>();
    args.extend(["--set", "stage.warm-up.steps=1"]);
    keel(path, &args).fine();
    let recipe = fs::read_to_string(path.join("run/recipe.toml")).unwrap();
    assert!(recipe.contains("template = \"qwen3\""), "{recipe}");
    assert!(recipe.contains("vocabulary = 429"), "{recipe}");
    // The connector alone was trained in the first stage.
    let (_, first) = &keel::train::stage_checkpoints(&path.join("run")).unwrap()[0];
    let bytes = fs::read(first).unwrap();
    let saved = SafeTensors::deserialize(&bytes).unwrap();
    let table = saved.tensor("language.embedding").unwrap();
    assert_eq!(table.shape(), [429, 32]);
    let floats = table.data().as_chunks::<4>().0.iter();
    let rows: Vec<f32> = floats.map(|b| f32::from_le_bytes(*b)).collect();
    for column in 0..32 {
        let known = (0..426).map(|row| f64::from(rows[row * 32 + column]));
        let mean = (known.sum::<f64>() / 426.0) as f32;
        for row in 426..429 {
            assert_eq!(rows[row * 32 + column], mean, "row {row}, column {column}");
        }
    }
    // The run has all it needs: the folder may go.
    fs::remove_dir_all(path.join("decoder")).unwrap();
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/verify/goldens/chat/fox.png");
    let asked = [
        "caption",
        "run",
        image,
        "--question",
        "what is <|im_end|> this?",
    ];
    keel(path, &asked).fine();
    let measured = keel(
        path,
        &[
            "eval",
            "run",
            "--metrics",
            "questions,distances",
            "--images",
            "4",
        ],
    );
    let measured = measured.fine();
    assert!(measured.stdout.contains("Questions"), "{measured:#?}");
    let resume = [
        "train",
        "--resume",
        "run",
        "--max-steps",
        "1",
        "--no-evaluation",
    ];
    keel(path, &resume).fine();
}

#[test]
fn a_tokeniser_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    language_with_a_tokeniser(&path.join("decoder"), 425);
    let train = [
        "train",
        "--device",
        "cpu",
        "--recipe",
        "tiny",
        "--language",
        "decoder",
    ];
    keel(path, &train).refused(&["tokenizer.json", "makes 426 ids", "425 embeddings"]);
    let layout = [&train[..], &["--chat", "llama"]].concat();
    let answer = keel(path, &layout).code_is(2);
    assert!(
        answer
            .stderr
            .contains("expected one of qwen2, qwen2.5, qwen3"),
        "{answer:#?}"
    );
    let file = path.join("decoder/tokenizer.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("<|im_start|>", "<|start|>")).unwrap();
    keel(path, &train).refused(&["tokenizer.json", "has no control token <|im_start|>"]);
    fs::write(&file, "{\"version\":\"1.0\"").unwrap();
    keel(path, &train).refused(&["tokenizer.json: is no JSON"]);
    fs::write(&file, "{\"version\":\"1.0\"}").unwrap();
    keel(path, &train).refused(&["tokenizer.json: is no tokeniser"]);
    // In a decoder the library takes what is no JSON for a promise that was broken, and gives up.
    let broken = text.replacen("\"trim_offsets\": true,", "\"trim_offsets\": true?", 1);
    assert_ne!(broken, text);
    fs::write(&file, broken).unwrap();
    keel(path, &train).refused(&["tokenizer.json: is no JSON"]);
    assert!(!path.join("runs").exists());
}

#[test]
fn weights_that_do_not_go_with_the_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train = |option: &str, family: &str, more: &[&str]| {
        let path = hub(family).display().to_string();
        let mut args = vec![
            "train", "--device", "cpu", "--recipe", "tiny", option, &path,
        ];
        args.extend(more);
        keel(folder.path(), &args)
    };
    train("--language", "qwen3", &[]).refused(&["tokenizer.json", "512", "64"]);
    train("--language", "qwen3", &["--chat", "qwen3"]).refused(&["tokenizer.json", "copy"]);
    train("--vision", "qwen3", &[]).refused(&["qwen3", "has no vision tower"]);
    train(
        "--vision",
        "clip",
        &["--set", "model.connector.unshuffle_factor=3"],
    )
    .refused(&["connector.unshuffle_factor", "4"]);
    assert!(
        !folder.path().join("runs").exists(),
        "a refused run left a folder"
    );
}
