//! Runs that begin from folders: the weights are in the model, bit for bit, and what does not go together is refused.

use std::fs;
use std::path::Path;

use keel::weights::{Folder, Part};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use super::{hub, values};
use crate::command::{keel, tiny_recipe};

/// The small Qwen2 with its 64 rows of the embedding eight times over: the embedded tokeniser's 512.
fn language_of_the_tokeniser(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let text = fs::read_to_string(hub("qwen2").join("config.json")).unwrap();
    let mut config: Json = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = json!(512);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(hub("qwen2").join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.embed_tokens.weight";
    let table = all.tensor(name).unwrap().data().repeat(8);
    let views = all.iter().map(|(other, view)| match other == name {
        true => (
            other,
            TensorView::new(view.dtype(), vec![512, 32], &table).unwrap(),
        ),
        false => (other, view),
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// Holds a module of the run's last checkpoint against the folder it began from.
fn holds(run: &Path, folder: &Path) -> usize {
    let folder = Folder::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let part = &Part::all(&folder).unwrap_or_else(|e| panic!("{e}"))[0];
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
        let want: Vec<u8> = want.iter().flat_map(|x| x.to_le_bytes()).collect();
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
    language_of_the_tokeniser(&folder.path().join("decoder"));
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
    train("--language", "qwen3", &[]).refused(&["vocab", "512", "64"]);
    train("--vision", "qwen3", &[]).refused(&["qwen3", "has no vision tower"]);
    train("--vision", "clip", &["--set", "model.connector.factor=3"])
        .refused(&["connector.factor", "4"]);
    assert!(
        !folder.path().join("runs").exists(),
        "a refused run left a folder"
    );
}
