//! Hugging Face folders: small random models of every family, made by transformers, give the hidden states and the gradients
//! of all parameters that transformers computes, on the reference and on the processor, and for one tower of each form and
//! one decoder on the emulated kernels, within the budget that the rounding reference derives.
//!
//! The golden is held like one more executor: transformers normalises in f32 even where everything else is f64.

mod export;
mod processors;
mod published;
mod refusals;
mod resized;
mod starting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::model::{embed_tokens, language_head, language_trunk, vision_tower};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{Tape, Target};
use keel::tensor::{DType, Shape, TensorType};
use keel::weights::{Folder, Part, Tower};

use crate::harness::{DRAWS, Golden, Random, derive_budget, goldens, moved};

fn hub(family: &str) -> PathBuf {
    goldens().join("hub").join(family)
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

/// Records the part with `images` or `tokens` as its input, and what goes backward from the cotangent of its last value.
fn compile(part: &Part, golden: &Golden, target: Target) -> Program {
    let mut tape = Tape::new(part.layout().clone(), |_| true).in_precision(DType::F32);
    let last = match part.tower() {
        Tower::Vision(config) => {
            let images = tape.input("images", TensorType::f32(golden.shape("input.images")));
            vision_tower(&mut tape, config, images).expect("a tower records")
        }
        Tower::Language(config) => {
            let tokens = tape.input("tokens", TensorType::i32(golden.shape("input.tokens")));
            let x = embed_tokens(&mut tape, config, tokens).expect("a decoder records");
            let y =
                language_trunk(&mut tape, config, x, None, "language").expect("a decoder records");
            let head = language_head(&mut tape, config).expect("a decoder records");
            let logits = ops::linear(&mut tape, y, head.weight, None).expect("a product records");
            tape.name(logits, "logits");
            logits
        }
        Tower::Connector(_) => unreachable!("no golden is a connector alone"),
    };
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
/// a folder as parameters do and are read as these are.
fn expected_values(golden: &Golden, family: &str) -> BTreeMap<String, (Shape, Vec<f64>)> {
    let folder = Folder::open(&hub(family).join("gradients")).unwrap_or_else(|e| panic!("{e}"));
    let parts = Part::all(&folder).unwrap_or_else(|e| panic!("{e}"));
    let gradients = values(&folder, &parts[0]);
    let gradients = parts[0].layout().entries().iter().map(|entry| {
        let range = entry.offset..entry.offset + entry.spec.shape.numel();
        let values = gradients[range].iter().map(|x| f64::from(*x)).collect();
        let name = format!("gradient.{}", entry.spec.name);
        (name, (entry.spec.shape, values))
    });
    let states = golden.names("value.").into_iter().map(|name| {
        let key = format!("value.{name}");
        let values = golden.floats(&key).to_vec();
        (name.to_owned(), (golden.shape(&key), values))
    });
    states.chain(gradients).collect()
}

/// `expected` names the folder that the same model's hidden states and gradients are in.
fn check(family: &str, expected: &str) {
    check_on(family, expected, false);
}

/// As [`check`], on the emulated kernels too.
fn check_on(family: &str, expected: &str, emulated: bool) {
    let folder = Folder::open(&hub(family)).unwrap_or_else(|e| panic!("{e}"));
    let parts = Part::all(&folder).unwrap_or_else(|e| panic!("{e}"));
    let [part] = &parts[..] else {
        panic!("{family} is one part, found {}", parts.len());
    };
    let golden = Golden::open(&format!("hub/{expected}/expected"));
    let wanted = expected_values(&golden, expected);
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
    let mut found = vec![("reference", &truth), ("cpu", &on_cpu)];
    let simt = SimtExecutor::new(elements, Options::default()).ok();
    let on_simt = simt.filter(|_| emulated).map(|simt| {
        simt.write_parameters(0, &parameters).unwrap();
        let program = compile(part, &golden, Target::Cuda);
        run(&simt, Arc::new(program), &golden, None)
    });
    found.extend(on_simt.as_ref().map(|values| ("simt", values)));
    for (executor, found) in found {
        for (name, (shape, want)) in &wanted {
            let (_, got) = found
                .get(name)
                .unwrap_or_else(|| panic!("{family} on {executor}: there is no {name}"));
            let problem = budgets[name].compare(*shape, want, got);
            problem.unwrap_or_else(|e| panic!("{family} on {executor}: {name}: {e}"));
        }
    }
    for (name, (shape, want)) in &wanted {
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
fn a_dinov2_folder_gives_the_hidden_states_and_gradients_of_transformers() {
    check("dinov2", "dinov2");
}

#[test]
fn a_dinov2_folder_of_the_gated_form_gives_the_hidden_states_and_gradients_of_transformers() {
    check("dinov2-giant", "dinov2-giant");
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
