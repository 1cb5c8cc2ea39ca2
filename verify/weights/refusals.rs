//! Folders that cannot be: one sentence each, which names the thing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{Folder, SubModel, hub, values};

/// A copy of a golden folder, to be spoilt.
struct Spoilt(TempDir);

impl Spoilt {
    fn of(family: &str) -> Spoilt {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(hub(family).join(name), folder.path().join(name)).expect("a copy");
        }
        Spoilt(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn set(self, key: &str, value: Json) -> Spoilt {
        let text = fs::read_to_string(self.path("config.json")).expect("a copy");
        let mut config: Json = serde_json::from_str(&text).expect("JSON");
        config[key] = value;
        fs::write(self.path("config.json"), config.to_string()).expect("room");
        self
    }

    /// Writes the tensors that `change` leaves, under the names and shapes it gives.
    fn tensors(self, change: impl Fn(&str, &[usize]) -> Option<(String, Vec<usize>)>) -> Spoilt {
        let bytes = fs::read(self.path("model.safetensors")).expect("a copy");
        let all = SafeTensors::deserialize(&bytes).expect("a golden");
        rewrite(&self.path("model.safetensors"), &all, change);
        self
    }

    /// What is said of it, whether at opening, at finding or at reading.
    fn problem(&self) -> String {
        let found = Folder::open(self.0.path()).and_then(|folder| {
            for part in SubModel::all(&folder)? {
                part.read(&folder, &mut |_, _, _| {})?;
            }
            Ok(())
        });
        let problem = found.expect_err("it was spoilt").to_string();
        assert_eq!(problem.lines().count(), 1, "{problem}");
        problem
    }

    fn says(&self, words: &[&str]) {
        let problem = self.problem();
        for word in words {
            assert!(problem.contains(word), "no {word:?} in: {problem}");
        }
    }
}

fn rewrite(
    path: &Path,
    all: &SafeTensors,
    change: impl Fn(&str, &[usize]) -> Option<(String, Vec<usize>)>,
) {
    let views = all.iter().filter_map(|(name, view)| {
        let (name, shape) = change(name, view.shape())?;
        Some((
            name,
            TensorView::new(view.dtype(), shape, view.data()).expect("as many elements"),
        ))
    });
    let bytes = safetensors::serialize(views, None).expect("tensors");
    fs::write(path, bytes).expect("room");
}

fn keep(name: &str, shape: &[usize]) -> Option<(String, Vec<usize>)> {
    Some((name.to_owned(), shape.to_vec()))
}

#[test]
fn a_missing_tensor_is_named_with_the_nearest() {
    let gone = "encoder.layers.1.self_attn.k_proj.bias";
    Spoilt::of("clip")
        .tensors(|name, shape| (!name.ends_with(gone)).then(|| keep(name, shape))?)
        .says(&[gone, "is missing", "encoder.layers.1.self_attn.v_proj.bias"]);
}

#[test]
fn a_surplus_tensor_is_named_with_the_nearest() {
    let spoilt = Spoilt::of("qwen2").tensors(|name, shape| {
        let name = name.replace(
            "model.layers.1.input_layernorm.weight",
            "model.layers.2.input_layernorm.weight",
        );
        keep(&name, shape)
    });
    spoilt.says(&["model.layers.1.input_layernorm.weight is missing"]);
    let fewer = Spoilt::of("qwen2")
        .set("num_hidden_layers", json!(1))
        .set("layer_types", json!(["full_attention"]));
    fewer.says(&["model.layers.1.", "has no place", "model.layers.0."]);
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let wrong = "preprocessor.patchifier.proj.weight";
    Spoilt::of("sailvit")
        .tensors(|name, shape| {
            if name == wrong {
                return Some((name.to_owned(), vec![32, 192]));
            }
            keep(name, shape)
        })
        .says(&[wrong, "[32, 192]", "[32, 3, 8, 8]"]);
}

#[test]
fn settings_that_change_the_maths_are_refused_by_name() {
    let cases = [
        (
            "qwen2",
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
            "rope_scaling",
        ),
        (
            "qwen2",
            "use_sliding_window",
            json!(true),
            "use_sliding_window",
        ),
        ("qwen3", "attention_bias", json!(true), "attention_bias"),
        ("qwen3", "hidden_act", json!("relu"), "relu"),
        ("llama", "attention_bias", json!(true), "attention_bias"),
        ("llama", "mlp_bias", json!(true), "mlp_bias"),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "rope_scaling.rope_type",
        ),
        (
            "internvl-6b",
            "layer_norm_eps",
            json!(1e-5),
            "1e-6 where use_qk_norm is true",
        ),
        ("aimv2", "is_native", json!(true), "is_native"),
        ("aimv2", "mlp_bias", json!(true), "mlp_bias"),
        ("clip", "num_channels", json!(1), "num_channels"),
        ("clip", "hidden_size", json!("wide"), "hidden_size"),
        ("clip", "hiden_size", json!(32), "nearest being hidden_size"),
        ("clip", "model_type", json!("convnext"), "convnext"),
        ("siglip", "patch_size", json!([8, 16]), "patch_size"),
        (
            "timm-vit",
            "architecture",
            json!("vit_base_r50_s16_224"),
            "architecture: expected a ViT of timm's",
        ),
        (
            "timm-vit",
            "model_args",
            json!({"qk_norm": true}),
            "model_args: qk_norm",
        ),
        (
            "timm-siglip",
            "model_args",
            json!({"class_token": true}),
            "model_args: class_token",
        ),
        (
            "timm-clip",
            "model_args",
            json!({"global_pool": "map"}),
            "global_pool",
        ),
        ("dinov3-gated", "hidden_act", json!("gelu"), "silu"),
        ("dinov3", "rope_theta", json!(0), "rope_theta"),
    ];
    for (family, key, value, word) in cases {
        Spoilt::of(family)
            .set(key, value)
            .says(&["config.json", word]);
    }
}

#[test]
fn a_tied_model_whose_stored_head_differs_is_refused() {
    let spoilt = Spoilt::of("qwen3").set("tie_word_embeddings", json!(true));
    spoilt.says(&[
        "lm_head.weight differs from the embedding",
        "tie_word_embeddings",
    ]);
}

#[test]
fn a_pointer_a_lying_header_and_an_empty_file_are_refused_by_file() {
    let write = |bytes: &[u8]| {
        let spoilt = Spoilt::of("clip");
        fs::write(spoilt.path("model.safetensors"), bytes).expect("room");
        spoilt
    };
    let whole = fs::read(hub("clip").join("model.safetensors")).expect("a golden");
    write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        .says(&["model.safetensors", "git lfs pull"]);
    write(&whole[..whole.len() - 1]).says(&["model.safetensors", "header does not describe"]);
    write(&[whole.clone(), vec![0]].concat())
        .says(&["model.safetensors", "header does not describe"]);
    write(&[]).says(&["model.safetensors", "header does not describe"]);
    let mut huge = whole;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    write(&huge).says(&["model.safetensors", "header does not describe"]);
    let spoilt = Spoilt::of("clip");
    fs::write(spoilt.path("config.json"), "{\"model_type\": ").expect("room");
    spoilt.says(&["config.json", "is not a JSON object"]);
    let spoilt = Spoilt::of("clip");
    fs::remove_file(spoilt.path("model.safetensors")).expect("a copy");
    spoilt.says(&["holds neither model.safetensors nor"]);
}

#[test]
fn another_format_is_named_for_what_it_is_with_the_way_forward() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let said = |path: &Path, words: &[&str]| {
        let problem = Folder::open(path).expect_err("no such folder").to_string();
        assert_eq!(problem.lines().count(), 1, "{problem}");
        for word in words {
            assert!(problem.contains(word), "no {word:?} in: {problem}");
        }
    };
    for (name, what, way) in [
        ("model-Q4_K_M.gguf", "GGUF", "converted from"),
        ("pytorch_model.bin", "pickled by PyTorch", "safetensors"),
        ("epoch_3.PT", "pickled by PyTorch", "safetensors"),
        ("tf_model.h5", "TensorFlow", "safetensors"),
        ("model.onnx", "ONNX", "exported from"),
    ] {
        let inner = folder.path().join(name.replace('.', "-"));
        fs::create_dir(&inner).expect("room");
        fs::write(inner.join(name), "x").expect("room");
        said(&inner, &[what, name, way]);
        said(&inner.join(name), &[what, way]);
        // With settings beside it, too.
        fs::copy(hub("clip").join("config.json"), inner.join("config.json")).expect("a copy");
        said(&inner, &[what, name, way]);
    }
    said(
        &hub("clip").join("model.safetensors"),
        &["a file of a folder", "give the folder"],
    );
    said(&folder.path().join("nowhere.gguf"), &["is not a folder"]);
    for (key, value, words) in [
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4, "sym": true}),
            "gptq, 4 bits",
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "bitsandbytes, 4 bits",
        ),
        (
            "quantization",
            json!({"group_size": 64, "bits": 8}),
            "quantised, 8 bits",
        ),
    ] {
        let spoilt = Spoilt::of("qwen2").set(key, value);
        spoilt.says(&[
            key,
            words,
            "F32, F16 or BF16",
            "the folder that was quantised",
        ]);
    }
    // What is near nothing is compared with nothing.
    let problem = Spoilt::of("clip").set("xyz", json!(1)).problem();
    assert!(
        problem.contains("xyz: expected only settings that Keel knows for this model; take it out"),
        "{problem}"
    );
}

#[test]
fn a_value_that_is_not_finite_and_a_type_that_is_not_read_are_named() {
    for (dtype, element, word) in [
        (Dtype::F32, &f32::NAN.to_le_bytes()[..], "NaN"),
        (Dtype::I32, &[0; 4][..], "I32"),
    ] {
        let spoilt = Spoilt::of("qwen2");
        let bytes = fs::read(spoilt.path("model.safetensors")).expect("a copy");
        let all = SafeTensors::deserialize(&bytes).expect("a golden");
        let name = "model.norm.weight";
        let data = element.repeat(32);
        let views = all.iter().map(|(other, view)| {
            if other == name {
                let view = TensorView::new(dtype, vec![32], &data);
                return (other, view.expect("32 elements"));
            }
            (other, view)
        });
        let bytes = safetensors::serialize(views, None).expect("tensors");
        fs::write(spoilt.path("model.safetensors"), bytes).expect("room");
        spoilt.says(&[name, word]);
    }
}

#[test]
fn shards_read_as_one_file_and_a_missing_one_is_named() {
    let spoilt = Spoilt::of("qwen2");
    let bytes = fs::read(spoilt.path("model.safetensors")).expect("a copy");
    let all = SafeTensors::deserialize(&bytes).expect("a golden");
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let shard_of = |name: &str| shards[usize::from(name.contains("layers.1."))];
    for shard in shards {
        rewrite(&spoilt.path(shard), &all, |name, shape| {
            (shard_of(name) == shard).then(|| keep(name, shape))?
        });
    }
    let map: serde_json::Map<String, Json> = all
        .names()
        .iter()
        .map(|name| (name.to_string(), json!(shard_of(name))))
        .collect();
    let index = |map: &serde_json::Map<String, Json>| {
        let text = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(spoilt.path("model.safetensors.index.json"), text).expect("room");
    };
    index(&map);
    let read = |path: &Path| {
        let folder = Folder::open(path).unwrap_or_else(|e| panic!("{e}"));
        let part = SubModel::language(&folder)
            .unwrap_or_else(|e| panic!("{e}"))
            .0;
        values(&folder, &part)
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    let whole = read(spoilt.0.path());
    fs::remove_file(spoilt.path("model.safetensors")).expect("a copy");
    assert!(read(spoilt.0.path()) == whole, "shards hold other values");

    let mut outside = map.clone();
    outside["model.norm.weight"] = json!("../weights.safetensors");
    index(&outside);
    spoilt.says(&["index.json", "../weights.safetensors, outside the folder"]);
    let mut elsewhere = map.clone();
    elsewhere["model.norm.weight"] = json!(shards[1]);
    index(&elsewhere);
    spoilt.says(&["model.norm.weight", shards[1], "does not hold it"]);
    index(&map);
    fs::remove_file(spoilt.path(shards[1])).expect("a shard");
    spoilt.says(&["index.json", shards[1], "not in the folder"]);
}

#[test]
fn the_parts_of_a_composed_folder_are_found_under_their_prefixes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = json!({"model_type": "internvl_chat", "downsample_ratio": 0.5});
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (key, family, prefix) in [
        ("vision_config", "sailvit", "vision_model."),
        ("llm_config", "qwen2", "language_model."),
    ] {
        let text = fs::read_to_string(hub(family).join("config.json")).expect("a golden");
        config[key] = serde_json::from_str(&text).expect("JSON");
        let bytes = fs::read(hub(family).join("model.safetensors")).expect("a golden");
        for (name, view) in SafeTensors::deserialize(&bytes).expect("a golden").iter() {
            tensors.push((
                format!("{prefix}{name}"),
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            ));
        }
    }
    tensors.push(("mlp1.0.weight".into(), Dtype::BF16, vec![128], vec![0; 256]));
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name,
            TensorView::new(*dtype, shape.clone(), data).expect("as many elements"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("tensors");
    fs::write(folder.path().join("model.safetensors"), bytes).expect("room");
    fs::write(folder.path().join("config.json"), config.to_string()).expect("room");

    let composed = Folder::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    for (family, index) in [("sailvit", 0), ("qwen2", 1)] {
        let alone = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
        let want = &SubModel::all(&alone).unwrap_or_else(|e| panic!("{e}"))[0];
        let got = &SubModel::all(&composed).unwrap_or_else(|e| panic!("{e}"))[index];
        assert_eq!(got.config(), want.config());
        let bits = |folder, part| {
            values(folder, part)
                .into_iter()
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        assert!(
            bits(&composed, got) == bits(&alone, want),
            "{family} reads otherwise inside"
        );
    }
}

#[test]
fn inspect_says_what_a_folder_is_and_fails_in_one_sentence() {
    let keel = |path: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_keel"))
            .arg("inspect")
            .arg(path)
            .output()
            .expect("it starts");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (
            output.status.success(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (is_fine, said, _) = keel(&hub("internvit"));
    assert!(is_fine);
    for words in [
        "InternViT vision tower",
        "17 tokens",
        "vision.blocks",
        "drop_path_rate 0.1",
        "Keel can train it",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let (is_fine, _, said) = keel(Spoilt::of("clip").set("model_type", json!("swin")).0.path());
    assert!(
        !is_fine && said.lines().count() == 1 && said.contains("swin"),
        "{said}"
    );
}
