//! Low-rank adapters: what PEFT computes with them, its files in and out, and the same model with them merged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keel::model::{BlockConfig, LoraConfig, merge_adapters};
use keel::tape::{ParameterEntry, ParameterLayout, Tape};
use keel::train::Recipe;
use keel::weights::{
    AdapterFolder, Folder, LinearModule, SubModel, SubModelConfig, adapter_tensors, write_adapters,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

use super::{Case, hold, hub, only_part, values};
use crate::harness::Golden;

/// A folder's model with settings of adapters.
fn with_lora(config: &SubModelConfig, lora: Option<LoraConfig>) -> SubModelConfig {
    match config.clone() {
        SubModelConfig::Vision(mut config) => {
            config.lora = lora;
            SubModelConfig::Vision(config)
        }
        SubModelConfig::Language(mut config) => {
            config.lora = lora;
            SubModelConfig::Language(config)
        }
        other => other,
    }
}

fn block(config: &SubModelConfig) -> BlockConfig {
    match config {
        SubModelConfig::Vision(config) => config.block(),
        SubModelConfig::Language(config) => config.block(),
        _ => unreachable!("a tower"),
    }
}

fn layout_of(config: &SubModelConfig, golden: &Golden) -> Arc<ParameterLayout> {
    let mut tape = Tape::declaring();
    super::record(&mut tape, config, golden);
    Arc::new(ParameterLayout::new(&tape.specs()))
}

/// A model of the hub with PEFT's adapters in it.
struct Adapted {
    part: SubModel,
    config: SubModelConfig,
    layout: Arc<ParameterLayout>,
    parameters: Vec<f32>,
    golden: Golden,
}

impl Adapted {
    fn open(family: &str) -> Adapted {
        let folder = Folder::open(&hub(family)).unwrap();
        let part = only_part(&folder);
        let golden = Golden::open(&format!("hub/{family}/lora/expected"));
        let adapters = AdapterFolder::open(&hub(family).join("lora")).unwrap();
        let modules = part.linear_modules();
        let lora = adapters.lora(&block(part.config()), &modules).unwrap();
        let config = with_lora(part.config(), Some(lora));
        let layout = layout_of(&config, &golden);
        let mut parameters = vec![0.0; layout.elements()];
        let base = values(&folder, &part);
        for entry in part.layout().entries() {
            let place = layout.get(&entry.spec.name).unwrap().offset;
            let count = entry.spec.shape.numel();
            parameters[place..place + count].copy_from_slice(&base[entry.offset..][..count]);
        }
        let mut all = Adapted {
            part,
            config,
            layout,
            parameters,
            golden,
        };
        for (name, values) in all.adapters(&hub(family).join("lora")) {
            let place = all.layout.get(&name).unwrap().offset;
            all.parameters[place..place + values.len()].copy_from_slice(&values);
        }
        all
    }

    /// The values of a folder's adapters by Keel's names.
    fn adapters(&self, folder: &Path) -> BTreeMap<String, Vec<f32>> {
        let mut all = BTreeMap::new();
        let folder = AdapterFolder::open(folder).unwrap_or_else(|e| panic!("{e}"));
        let modules = self.part.linear_modules();
        folder
            .read(&block(&self.config), &modules, &mut |name, values| {
                all.insert(name.to_owned(), values.to_vec());
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        all
    }

    fn value_of(&self, entry: &ParameterEntry) -> &[f32] {
        let own = self.layout.get(&entry.spec.name).unwrap();
        &self.parameters[own.offset..][..own.spec.shape.numel()]
    }

    /// The adapters as a folder has them whose modules are called so.
    fn write(&self, modules: &[LinearModule], out: &Path) {
        let value_of = |entry: &ParameterEntry| self.value_of(entry);
        let names = (None, None);
        let tensors = adapter_tensors(
            &block(&self.config),
            modules,
            &self.layout,
            &value_of,
            names,
        );
        write_adapters(out, &tensors, Dtype::F32).unwrap();
    }

    /// The parameters with the adapters merged.
    fn merged(&self) -> Vec<f32> {
        let mut model = Recipe::load("tiny", &[]).unwrap().model;
        match &self.config {
            SubModelConfig::Vision(config) => model.vision = config.clone(),
            SubModelConfig::Language(config) => model.language = config.clone(),
            _ => unreachable!("a tower"),
        }
        let mut merged = self.parameters.clone();
        merge_adapters(&model, &self.layout, &mut merged);
        merged
    }
}

/// Holds values and gradients of the adapters to PEFT's, and those of the merged model to the same values.
fn check(family: &str, emulated: bool) {
    let adapted = Adapted::open(family);
    let values = adapted.golden.names("value.").into_iter().map(|name| {
        let key = format!("value.{name}");
        let value = (
            adapted.golden.shape(&key),
            adapted.golden.floats(&key).to_vec(),
        );
        (name.to_owned(), value)
    });
    let values: BTreeMap<_, _> = values.collect();
    let mut wanted = values.clone();
    for (name, values) in adapted.adapters(&hub(family).join("lora/gradients")) {
        let shape = adapted.layout.get(&name).unwrap().spec.shape;
        let values = values.iter().map(|x| f64::from(*x)).collect();
        wanted.insert(format!("gradient.{name}"), (shape, values));
    }
    let case = |name, config: SubModelConfig, parameters: Vec<f32>, wanted, emulated| {
        let golden = Golden::open(&format!("hub/{family}/lora/expected"));
        let case = Case {
            name,
            layout: layout_of(&config, &golden),
            parameters,
            golden,
            wanted,
            record: &|tape, golden| super::record(tape, &config, golden),
        };
        hold(&case, emulated);
    };
    let merged = adapted.merged();
    let bare = with_lora(&adapted.config, None);
    let layout = layout_of(&bare, &adapted.golden);
    let mut alone = vec![0.0; layout.elements()];
    for entry in layout.entries() {
        let own = adapted.layout.get(&entry.spec.name).unwrap();
        let count = own.spec.shape.numel();
        alone[entry.offset..][..count].copy_from_slice(&merged[own.offset..][..count]);
    }
    let config = adapted.config.clone();
    case(
        "adapters",
        config,
        adapted.parameters.clone(),
        wanted,
        emulated,
    );
    case("merged", bare, alone, values, false);
}

#[test]
fn adapters_of_a_decoder_compute_and_learn_what_pefts_do_and_merged_ones_compute_the_same() {
    check("qwen2", true);
}

#[test]
fn adapters_of_a_classic_tower_compute_and_learn_what_pefts_do_and_merged_ones_compute_the_same() {
    check("clip", false);
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let values = view.data().as_chunks::<4>().0.iter();
        let values = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (name.to_owned(), (view.shape().to_vec(), values))
    };
    all.iter().map(read).collect()
}

fn settings(folder: &Path) -> Json {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn adapters_leave_as_they_came_under_the_names_of_peft() {
    for family in ["qwen2", "clip"] {
        let adapted = Adapted::open(family);
        let out = tempfile::tempdir().unwrap();
        adapted.write(&adapted.part.linear_modules(), out.path());
        let came = hub(family).join("lora");
        assert!(tensors(out.path()) == tensors(&came), "{family}");
        let (ours, theirs) = (settings(out.path()), settings(&came));
        for key in ["peft_type", "r", "bias", "fan_in_fan_out", "rank_pattern"] {
            assert_eq!(ours[key], theirs[key], "{family}: {key}");
        }
        assert_eq!(ours["lora_alpha"].as_f64(), theirs["lora_alpha"].as_f64());
    }
}

#[test]
fn adapters_of_what_a_folder_has_packed_are_written_as_one_that_adds_the_same() {
    let adapted = Adapted::open("qwen2");
    let mut modules = adapted.part.linear_modules();
    for module in &mut modules {
        let rows = module.tensors.iter().map(|(_, rows)| rows).sum();
        module.tensors = vec![(module.name.clone(), rows)];
    }
    let out = tempfile::tempdir().unwrap();
    adapted.write(&modules, out.path());
    let (written, settings) = (tensors(out.path()), settings(out.path()));
    let merged = adapted.merged();
    let name = "language.blocks.1.attention.qkv";
    // Queries and values have adapters of rank 3, keys none.
    assert_eq!(settings["rank_pattern"][name], json!(6));
    assert_eq!(settings["alpha_pattern"][name], json!(12.0));
    let [(_, a), (shape, b)] =
        ["A", "B"].map(|half| &written[&format!("base_model.model.{name}.lora_{half}.weight")]);
    let weight = adapted.layout.get(&format!("{name}.weight")).unwrap();
    let columns = weight.spec.shape.columns();
    let before = adapted.value_of(weight);
    let after = &merged[weight.offset..][..before.len()];
    let mut changed = 0;
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let (row, column) = (index / columns, index % columns);
        let terms = (0..shape[1])
            .map(|k| f64::from(b[row * shape[1] + k]) * f64::from(a[k * columns + column]));
        // α / r is 12 / 6.
        let want = (f64::from(*before) + 2.0 * terms.sum::<f64>()) as f32;
        assert!(
            (want - after).abs() <= f32::EPSILON * want.abs(),
            "{want} {after}"
        );
        changed += usize::from(before != after);
    }
    assert!(changed > before.len() / 2, "{changed}");
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let adapted = Adapted::open("qwen2");
    let folder = tempfile::tempdir().unwrap();
    let modules = adapted.part.linear_modules();
    let refused = |change: &dyn Fn(&mut Json)| -> String {
        let came = hub("qwen2").join("lora");
        fs::copy(
            came.join("adapter_model.safetensors"),
            folder.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        let mut config = settings(&came);
        change(&mut config);
        fs::write(
            folder.path().join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
        let opened = AdapterFolder::open(folder.path());
        let block = block(adapted.part.config());
        opened
            .and_then(|adapters| adapters.lora(&block, &modules))
            .unwrap_err()
            .to_string()
    };
    let came = AdapterFolder::open(&hub("qwen2").join("lora")).unwrap();
    assert_eq!(came.dropout(), 0.0);
    let ranked = |config: &mut Json| {
        config["lora_dropout"] = json!(0.05);
        config["r"] = json!(4);
    };
    refused(&ranked);
    let dropped = AdapterFolder::open(folder.path()).unwrap();
    assert_eq!(dropped.dropout(), 0.05, "told, and no reason to refuse");
    let shape = refused(&|config| config["r"] = json!(4));
    assert!(
        shape.contains("lora_A.weight") && shape.contains("4 is wanted"),
        "{shape}"
    );
    let dora = refused(&|config| config["use_dora"] = json!(true));
    assert!(dora.contains("use_dora"), "{dora}");
    let kind = refused(&|config| config["peft_type"] = json!("IA3"));
    assert!(
        kind.contains("peft_type") && kind.contains("LORA"),
        "{kind}"
    );
    let ranks = refused(&|config| config["rank_pattern"] = json!({"q_proj": 8}));
    assert!(ranks.contains("rank_pattern"), "{ranks}");
    let other = AdapterFolder::open(&hub("clip").join("lora")).unwrap();
    let other = other
        .lora(&block(adapted.part.config()), &modules)
        .unwrap_err();
    assert!(
        other.to_string().contains("belongs to no linear module"),
        "{other}"
    );
    let nothing = AdapterFolder::open(&hub("qwen2")).unwrap_err().to_string();
    assert!(nothing.contains("adapter_config.json"), "{nothing}");
}
