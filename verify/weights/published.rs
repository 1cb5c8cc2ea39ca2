//! The published sizes from settings alone, as `config.json` of each model has them: parameter counts and tensor shapes
//! without a value. Files of zeros stand for the weights; they take no room on the disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Folder, SubModel};

/// A safetensors file with these tensors in bf16, all zeros in a file that is one hole.
fn write_hollow(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let mut header = Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("plain JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).expect("a temporary file");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .expect("room for a header");
    file.write_all(&header).expect("room for a header");
    file.set_len((8 + header.len() + offset) as u64)
        .expect("a hollow file");
}

fn count(config: &Json, tensors: &[(String, Vec<usize>)]) -> usize {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("room");
    write_hollow(&folder.path().join("model.safetensors"), tensors);
    let folder = Folder::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    let parts = SubModel::all(&folder).unwrap_or_else(|e| panic!("{e}"));
    parts.iter().map(|part| part.layout().count(|_| true)).sum()
}

fn sailvit(width: usize, heads: usize, mlp: usize) -> usize {
    let config = json!({
        "architectures": ["AIMv2Model"], "attention_dropout": 0.0, "hidden_size": width, "image_size": 448,
        "intermediate_size": mlp, "model_type": "aimv2", "num_attention_heads": heads, "num_channels": 3,
        "num_hidden_layers": 24, "patch_size": 14, "projection_dropout": 0.0, "qkv_bias": false,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "use_bias": false
    });
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        (
            "preprocessor.patchifier.proj.weight".into(),
            vec![width, 3, 14, 14],
        ),
        ("preprocessor.patchifier.proj.bias".into(), vec![width]),
        ("preprocessor.patchifier.norm.weight".into(), vec![width]),
        ("preprocessor.pos_embed".into(), vec![1, 1024, width]),
        ("trunk.post_trunk_norm.weight".into(), vec![width]),
    ];
    for layer in 0..24 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((
                format!("trunk.blocks.{layer}.{name}.weight"),
                shape.to_vec(),
            ));
        };
        add("norm_1", &[width]);
        add("norm_2", &[width]);
        add("attn.qkv", &[3 * width, width]);
        add("attn.proj", &[width, width]);
        add("mlp.fc1", &[mlp, width]);
        add("mlp.fc3", &[mlp, width]);
        add("mlp.fc2", &[width, mlp]);
    }
    count(&config, &tensors)
}

#[test]
fn sailvit_folders_have_the_published_number_of_parameters() {
    assert_eq!(sailvit(1024, 8, 2816), 309_984_256);
    assert_eq!(sailvit(1536, 12, 4096), 682_031_616);
}

/// The smallest published Qwen3, whose query rows are twice its width, with the redundant output product of a tied model.
#[test]
fn a_qwen3_folder_with_a_redundant_head_has_the_published_number_of_parameters() {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_sliding_window": false, "vocab_size": 151936
    });
    let table = vec![151_936, 1024];
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), table.clone()),
        ("lm_head.weight".into(), table),
        ("model.norm.weight".into(), vec![1024]),
    ];
    for layer in 0..28 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((
                format!("model.layers.{layer}.{name}.weight"),
                shape.to_vec(),
            ));
        };
        add("input_layernorm", &[1024]);
        add("post_attention_layernorm", &[1024]);
        add("self_attn.q_proj", &[2048, 1024]);
        add("self_attn.k_proj", &[1024, 1024]);
        add("self_attn.v_proj", &[1024, 1024]);
        add("self_attn.o_proj", &[1024, 2048]);
        add("self_attn.q_norm", &[128]);
        add("self_attn.k_norm", &[128]);
        add("mlp.gate_proj", &[3072, 1024]);
        add("mlp.up_proj", &[3072, 1024]);
        add("mlp.down_proj", &[1024, 3072]);
    }
    assert_eq!(count(&config, &tensors), 596_049_920);
}
