//! Hugging Face folders: small random models of every family, made by transformers, give the hidden states and the gradients
//! of all parameters that transformers computes, on the reference and on the processor, and for one tower of each form and
//! one decoder on the emulated kernels, within the budget that the rounding reference derives.
//!
//! The golden is held like one more executor: transformers normalises in f32 even where everything else is f64.

mod cards;
mod chats;
mod connectors;
mod export;
mod inspecting;
mod lora;
mod pooled;
mod processors;
mod published;
mod refusals;
mod resized;
mod settings;
mod starting;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::model::{ModelInput, embed_tokens, language_head, language_trunk, vision_tower};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape, Target, Value};
use keel::tensor::{DType, Shape, TensorType};
use keel::weights::{Folder, SubModel, SubModelConfig};

use crate::harness::{DRAWS, Golden, Random, derive_budget, goldens, moved};

fn hub(family: &str) -> PathBuf {
    goldens().join("hub").join(family)
}

/// The parameters of a part, laid out.
fn values(folder: &Folder, part: &SubModel) -> Vec<f32> {
    let mut values = vec![f32::NAN; part.layout().elements()];
    let write = &mut |entry: &keel::tape::ParameterEntry, first: usize, piece: &[f32]| {
        let place = entry.offset + first;
        values[place..place + piece.len()].copy_from_slice(piece);
    };
    part.read(folder, write)
        .expect("the folder's values are finite");
    for entry in part.layout().entries() {
        let written = &values[entry.offset..entry.offset + entry.spec.shape.numel()];
        assert!(
            written.iter().all(|x| x.is_finite()),
            "{} was not read",
            entry.spec.name
        );
    }
    values
}

/// A model with what transformers makes of it.
struct Case<'a> {
    /// What failures call it.
    name: &'a str,
    layout: Arc<ParameterLayout>,
    parameters: Vec<f32>,
    golden: Golden,
    /// Values and gradients by the names that the program gives them.
    wanted: BTreeMap<String, (Shape, Vec<f64>)>,
    /// Records the model on the golden's input. Gives the value that goes backward from the golden's cotangent.
    record: &'a dyn Fn(&mut Tape, &Golden) -> Value,
}

fn record_part(tape: &mut Tape, part: &SubModel, golden: &Golden) -> Value {
    record(tape, part.config(), golden)
}

fn record(tape: &mut Tape, config: &SubModelConfig, golden: &Golden) -> Value {
    match config {
        SubModelConfig::Vision(config) => {
            let images = tape.input("images", TensorType::f32(golden.shape("input.images")));
            vision_tower(tape, config, images).expect("a tower records")
        }
        SubModelConfig::Language(config) => {
            let tokens = tape.input("tokens", TensorType::i32(golden.shape("input.tokens")));
            let x = embed_tokens(tape, config, tokens).expect("a decoder records");
            let y = language_trunk(tape, config, x, None, "language").expect("a decoder records");
            let head = language_head(tape, config).expect("a decoder records");
            let logits = ops::linear(tape, y, head.weight, None).expect("a product records");
            tape.name(logits, "logits");
            logits
        }
        SubModelConfig::Connector(_) | SubModelConfig::Head(..) => {
            unreachable!("no golden is of one alone")
        }
    }
}

fn compile(case: &Case<'_>, target: Target) -> Program {
    let golden = &case.golden;
    let mut tape = Tape::new(case.layout.clone(), |_| true).in_precision(DType::F32);
    let last = (case.record)(&mut tape, golden);
    let cotangent = TensorType::f32(golden.shape("input.cotangent"));
    let cotangent = tape.input("cotangent", cotangent);
    tape.backward_from(&[(last, cotangent)])
        .expect("everything is trained");
    let mut options = CompileOptions::new(target);
    options.keep = tape
        .values()
        .iter()
        .filter_map(|info| info.name.clone())
        .filter(|name| name.starts_with("gradient.") || golden.has(&format!("value.{name}")))
        .collect();
    Program::compile(tape, &options).expect("a tiny model fits")
}

type Values = BTreeMap<String, (TensorType, Vec<f64>)>;

fn run(
    executor: &dyn Executor,
    program: Arc<Program>,
    golden: &Golden,
    mut move_inputs: Option<&mut Random>,
) -> Values {
    let mut session = executor.load(program).expect("a tiny model fits");
    let mut write = |name: &str, mut values: Vec<f64>| {
        if let Some(random) = &mut move_inputs {
            values
                .iter_mut()
                .for_each(|x| *x = moved(*x, DType::F32.epsilon(), random));
        }
        session
            .write_f64(name, &values)
            .expect("the golden's input fits");
    };
    write("cotangent", golden.floats("input.cotangent").to_vec());
    if golden.has("input.images") {
        write("images", golden.floats("input.images").to_vec());
    } else {
        session
            .write_i32("tokens", golden.integers("input.tokens"))
            .expect("the golden's input fits");
    }
    let class_token = ModelInput::ClassToken.name();
    if session.program().input(class_token).is_ok() {
        session.write_i32(class_token, &[0]).expect("one image");
    }
    session.run().expect("the model runs");
    let program = session.program();
    program
        .output_names()
        .map(|name| {
            let ty = program.ty(program.output(name).expect("kept"));
            (name.to_owned(), (ty, session.read_f64(name).expect("kept")))
        })
        .collect()
}

/// What transformers computed, by the names of the program's values: hidden states, logits, and the gradients, which lie in
/// a folder as parameters do and are read as these are by `parts_of`.
fn expected_values(
    golden: &Golden,
    gradients: &Path,
    parts_of: &dyn Fn(&Folder) -> Vec<SubModel>,
) -> BTreeMap<String, (Shape, Vec<f64>)> {
    let folder = Folder::open(gradients).unwrap_or_else(|e| panic!("{e}"));
    let states = golden.names("value.").into_iter().map(|name| {
        let key = format!("value.{name}");
        let values = golden.floats(&key).to_vec();
        (name.to_owned(), (golden.shape(&key), values))
    });
    let mut wanted: BTreeMap<_, _> = states.collect();
    for part in parts_of(&folder) {
        let gradients = values(&folder, &part);
        for entry in part.layout().entries() {
            let range = entry.offset..entry.offset + entry.spec.shape.numel();
            let values = gradients[range].iter().map(|x| f64::from(*x)).collect();
            let name = format!("gradient.{}", entry.spec.name);
            wanted.insert(name, (entry.spec.shape, values));
        }
    }
    wanted
}

/// The one part of a folder.
fn only_part(folder: &Folder) -> SubModel {
    let mut parts = SubModel::all(folder).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(parts.len(), 1, "{} is one part", folder.path().display());
    parts.remove(0)
}

/// `expected` names the folder that the same model's hidden states and gradients are in.
fn check(family: &str, expected: &str) {
    check_on(family, expected, false);
}

/// As [`check`], on the emulated kernels too.
fn check_on(family: &str, expected: &str, emulated: bool) {
    let folder = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
    let part = only_part(&folder);
    let golden = Golden::open(&format!("hub/{expected}/expected"));
    let gradients = hub(expected).join("gradients");
    let case = Case {
        name: family,
        layout: part.layout().clone(),
        parameters: values(&folder, &part),
        wanted: expected_values(&golden, &gradients, &|folder| vec![only_part(folder)]),
        golden,
        record: &|tape, golden| record_part(tape, &part, golden),
    };
    hold(&case, emulated);
}

/// Holds the case on the reference and the processor, and on the emulated kernels where `emulated`.
fn hold(case: &Case<'_>, emulated: bool) {
    let Case {
        name: family,
        parameters,
        golden,
        wanted,
        ..
    } = case;
    let elements = case.layout.elements();
    let program = Arc::new(compile(case, Target::Reference));
    let reference = ReferenceExecutor::new(elements);
    reference.write_parameters(0, parameters).unwrap();
    let truth = run(&reference, program.clone(), golden, None);

    let mut random = Random::new(0x4ab);
    let rounding = ReferenceExecutor::rounding(elements, random.below(1 << 30) as u64);
    let budgets = derive_budget(&truth, DRAWS, || {
        let change = |x: &f32| moved(f64::from(*x), DType::F32.epsilon(), &mut random) as f32;
        let near: Vec<f32> = parameters.iter().map(change).collect();
        rounding.write_parameters(0, &near).unwrap();
        run(&rounding, program.clone(), golden, Some(&mut random))
    });

    let cpu = CpuExecutor::new(elements, 2).expect("threads can be had");
    cpu.write_parameters(0, parameters).unwrap();
    let on_cpu = Arc::new(compile(case, Target::Cpu { threads: 2 }));
    let on_cpu = run(&cpu, on_cpu, golden, None);
    let mut found = vec![("reference", &truth), ("cpu", &on_cpu)];
    let simt = SimtExecutor::new(elements, Options::default()).ok();
    let on_simt = simt.filter(|_| emulated).map(|simt| {
        simt.write_parameters(0, parameters).unwrap();
        run(&simt, Arc::new(compile(case, Target::Cuda)), golden, None)
    });
    found.extend(on_simt.as_ref().map(|values| ("simt", values)));
    for (executor, found) in found {
        for (name, (shape, want)) in wanted {
            let (_, got) = found
                .get(name)
                .unwrap_or_else(|| panic!("{family} on {executor}: there is no {name}"));
            let problem = budgets[name].compare(*shape, want, got);
            problem.unwrap_or_else(|e| panic!("{family} on {executor}: {name}: {e}"));
        }
    }
    for (name, (shape, want)) in wanted {
        budgets[name].must_refuse_wrong_answers(&format!("{family}: {name}"), *shape, want);
    }
}

#[test]
fn an_aimv2_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check_on("aimv2", "aimv2", true);
}

#[test]
fn a_sailvit_folder_with_its_own_names_gives_the_same_hidden_states_and_gradients() {
    check("sailvit", "aimv2");
}

#[test]
fn a_clip_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check_on("clip", "clip", true);
}

#[test]
fn a_siglip_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("siglip", "siglip");
}

#[test]
fn a_siglip2_folder_of_patches_by_pixel_gives_the_hidden_states_and_gradients_of_transformers() {
    check("siglip2-naflex", "siglip2-naflex");
}

#[test]
fn an_internvl_tower_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("internvl", "internvl");
}

#[test]
fn an_internvit_folder_with_its_own_names_gives_the_same_hidden_states_and_gradients() {
    check("internvit", "internvl");
}

#[test]
fn internvit_folders_with_query_and_key_norms_over_all_heads_give_the_hidden_states_and_gradients()
{
    check_on("internvl-6b", "internvl-6b", true);
    check("internvit-6b", "internvl-6b");
}

#[test]
fn a_dinov2_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("dinov2", "dinov2");
}

#[test]
fn a_dinov2_folder_of_the_gated_form_gives_the_hidden_states_and_gradients_of_transformers() {
    check("dinov2-giant", "dinov2-giant");
}

#[test]
fn a_dinov2_folder_with_registers_gives_the_hidden_states_and_gradients_of_transformers() {
    check_on("dinov2-registers", "dinov2-registers", true);
}

#[test]
fn a_dinov3_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check_on("dinov3", "dinov3", true);
}

#[test]
fn a_dinov3_folder_of_the_gated_form_gives_the_hidden_states_and_gradients_of_transformers() {
    check("dinov3-gated", "dinov3-gated");
}

#[test]
fn a_distilled_deit_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("deit", "deit");
}

#[test]
fn a_vit_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check_on("vit", "vit", true);
}

#[test]
fn an_mae_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("vit-mae", "vit-mae");
}

#[test]
fn an_ijepa_folder_without_a_class_token_gives_the_hidden_states_and_gradients_of_transformers() {
    check("ijepa", "ijepa");
}

#[test]
fn a_metaclip2_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("metaclip2", "metaclip2");
}

#[test]
fn folders_of_timm_give_the_hidden_states_and_gradients_of_timm() {
    check("timm-vit", "timm-vit");
    check("timm-dinov2-registers", "timm-dinov2-registers");
    check("timm-dinov3", "timm-dinov3");
    check("timm-clip", "timm-clip");
    check("timm-siglip", "timm-siglip");
}

#[test]
fn an_open_clip_folder_gives_the_hidden_states_and_gradients_of_open_clip() {
    check_on("open-clip", "open-clip", true);
}

#[test]
fn a_tied_qwen2_folder_gives_the_hidden_states_logits_and_gradients_of_transformers() {
    check("qwen2", "qwen2");
}

#[test]
fn an_untied_qwen3_folder_with_explicit_head_dim_gives_the_hidden_states_logits_and_gradients_of_transformers()
 {
    check_on("qwen3", "qwen3", true);
}

#[test]
fn a_tied_llama_folder_with_grouped_queries_gives_the_hidden_states_logits_and_gradients_of_transformers()
 {
    check_on("llama", "llama", true);
}

#[test]
fn a_mistral_folder_within_its_window_gives_the_hidden_states_logits_and_gradients_of_transformers()
{
    check("mistral", "mistral");
}

#[test]
fn a_phi3_folder_of_fused_products_gives_the_hidden_states_logits_and_gradients_of_transformers() {
    check("phi3", "phi3");
}
