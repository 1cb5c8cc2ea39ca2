//! Hugging Face folders: small random models of every family, made by transformers, give the hidden states that transformers
//! computes, on the reference and on the processor, within the budget that the rounding reference derives.
//!
//! The golden is held like one more executor: transformers normalises in f32 even where everything else is f64.

mod export;
mod processors;
mod published;
mod refusals;
mod starting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use keel::executor::{CpuExecutor, Executor, ReferenceExecutor};
use keel::model::{embed_tokens, language_head, language_trunk, vision_tower};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{Tape, Target};
use keel::tensor::{DType, TensorType};
use keel::weights::{Folder, Part, Tower};

use crate::harness::{DRAWS, Golden, Random, derive_budget, moved};

/// Beside the sources; `KEEL_ROOT` names them where the tests were not built.
fn hub(family: &str) -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = std::env::var_os("KEEL_ROOT").map_or_else(built, PathBuf::from);
    root.join("verify/goldens/hub").join(family)
}

/// The parameters of a part, laid out.
fn values(folder: &Folder, part: &Part) -> Vec<f32> {
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

/// Records the part with `images` or `tokens` as its input.
fn compile(part: &Part, golden: &Golden, target: Target) -> Program {
    let mut tape = Tape::new(part.layout().clone(), |_| false).in_precision(DType::F32);
    match part.tower() {
        Tower::Vision(config) => {
            let images = tape.input("images", TensorType::f32(golden.shape("input.images")));
            let y = vision_tower(&mut tape, config, images).expect("a tower records");
            tape.output(y, "last");
        }
        Tower::Language(config) => {
            let tokens = tape.input("tokens", TensorType::i32(golden.shape("input.tokens")));
            let x = embed_tokens(&mut tape, config, tokens).expect("a decoder records");
            let y =
                language_trunk(&mut tape, config, x, None, "language").expect("a decoder records");
            let head = language_head(&mut tape, config).expect("a decoder records");
            let logits = ops::linear(&mut tape, y, head.weight, None).expect("a product records");
            tape.name(logits, "logits");
            tape.output(logits, "last");
        }
        Tower::Connector(_) => unreachable!("no golden is a connector alone"),
    }
    let mut options = CompileOptions::new(target);
    options.keep = golden
        .names("value.")
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    Program::compile(tape, &options).expect("a tiny model fits")
}

type Values = BTreeMap<String, (TensorType, Vec<f64>)>;

fn run(
    executor: &dyn Executor,
    program: Arc<Program>,
    golden: &Golden,
    move_inputs: Option<&mut Random>,
) -> Values {
    let mut session = executor.load(program).expect("a tiny model fits");
    if golden.has("input.images") {
        let mut images = golden.floats("input.images").to_vec();
        if let Some(random) = move_inputs {
            images
                .iter_mut()
                .for_each(|x| *x = moved(*x, DType::F32.epsilon(), random));
        }
        session
            .write_f64("images", &images)
            .expect("the golden's input fits");
    } else {
        session
            .write_i32("tokens", golden.integers("input.tokens"))
            .expect("the golden's input fits");
    }
    session.run().expect("the model runs");
    let program = session.program();
    golden
        .names("value.")
        .into_iter()
        .map(|name| {
            let ty = program.ty(program.output(name).expect("kept"));
            (name.to_owned(), (ty, session.read_f64(name).expect("kept")))
        })
        .collect()
}

/// `expected` names the folder that the same model's hidden states are in.
fn check(family: &str, expected: &str) {
    let folder = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
    let parts = Part::all(&folder).unwrap_or_else(|e| panic!("{e}"));
    let [part] = &parts[..] else {
        panic!("{family} is one part, found {}", parts.len());
    };
    let golden = Golden::open(&format!("hub/{expected}/expected"));
    let parameters = values(&folder, part);
    let elements = part.layout().elements();

    let program = Arc::new(compile(part, &golden, Target::Reference));
    let reference = ReferenceExecutor::new(elements);
    reference.write_parameters(0, &parameters).unwrap();
    let truth = run(&reference, program.clone(), &golden, None);

    let mut random = Random::new(0x4ab);
    let rounding = ReferenceExecutor::rounding(elements, random.below(1 << 30) as u64);
    let budgets = derive_budget(&truth, DRAWS, || {
        let change = |x: &f32| moved(f64::from(*x), DType::F32.epsilon(), &mut random) as f32;
        let near: Vec<f32> = parameters.iter().map(change).collect();
        rounding.write_parameters(0, &near).unwrap();
        run(&rounding, program.clone(), &golden, Some(&mut random))
    });

    let cpu = CpuExecutor::new(elements, 2).expect("threads can be had");
    cpu.write_parameters(0, &parameters).unwrap();
    let on_cpu = run(
        &cpu,
        Arc::new(compile(part, &golden, Target::Cpu { threads: 2 })),
        &golden,
        None,
    );
    for (executor, found) in [("reference", &truth), ("cpu", &on_cpu)] {
        for (name, (_, got)) in found {
            let key = format!("value.{name}");
            let problem = budgets[name].compare(golden.shape(&key), golden.floats(&key), got);
            problem.unwrap_or_else(|e| panic!("{family} on {executor}: {name}: {e}"));
        }
    }
    for (name, budget) in &budgets {
        let key = format!("value.{name}");
        budget.must_refuse_wrong_answers(
            &format!("{family}: {name}"),
            golden.shape(&key),
            golden.floats(&key),
        );
    }
}

#[test]
fn an_aimv2_folder_gives_the_hidden_states_of_transformers() {
    check("aimv2", "aimv2");
}

#[test]
fn a_sailvit_folder_with_its_own_names_gives_the_same_hidden_states() {
    check("sailvit", "aimv2");
}

#[test]
fn a_clip_folder_gives_the_hidden_states_of_transformers() {
    check("clip", "clip");
}

#[test]
fn a_siglip_folder_gives_the_hidden_states_of_transformers() {
    check("siglip", "siglip");
}

#[test]
fn a_siglip2_folder_of_patches_by_pixel_gives_the_hidden_states_of_transformers() {
    check("siglip2-naflex", "siglip2-naflex");
}

#[test]
fn an_internvl_tower_folder_gives_the_hidden_states_of_transformers() {
    check("internvl", "internvl");
}

#[test]
fn an_internvit_folder_with_its_own_names_gives_the_same_hidden_states() {
    check("internvit", "internvl");
}

#[test]
fn a_dinov2_folder_gives_the_hidden_states_of_transformers() {
    check("dinov2", "dinov2");
}

#[test]
fn a_dinov2_folder_of_the_gated_form_gives_the_hidden_states_of_transformers() {
    check("dinov2-giant", "dinov2-giant");
}

#[test]
fn a_tied_qwen2_folder_gives_the_hidden_states_and_logits_of_transformers() {
    check("qwen2", "qwen2");
}

#[test]
fn an_untied_qwen3_folder_with_explicit_head_dim_gives_the_hidden_states_and_logits_of_transformers()
 {
    check("qwen3", "qwen3");
}
