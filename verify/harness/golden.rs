//! Reads the goldens of `verify/goldens`, which `tools/goldens.py` makes with PyTorch. It compares nothing.
//!
//! A file of an op holds cases: `golden.cases()` gives each with its settings, and names inside a case are short
//! (`input.x`, `cotangent.y`, `value.y`, `gradient.x`). A file of a model is read directly: `parameter.<name>`,
//! `input.<name>`, `value.<intermediate>`, `gradient.<parameter>`, `loss`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keel::tensor::Shape;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

/// The elements of a tensor: what PyTorch stored as f32 or f64, widened, or as i32.
#[derive(Clone, Debug, PartialEq)]
enum Elements {
    Floats(Vec<f64>),
    Integers(Vec<i32>),
}

#[derive(Clone, Debug)]
struct Tensor {
    shape: Shape,
    elements: Elements,
}

/// One file of goldens, or one case of it.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The file's stem, with `/case` for a case.
    pub name: String,
    /// A model's configuration, or a case's settings.
    pub config: Json,
    /// The versions and the seed that made the file.
    pub made_by: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

/// Beside the sources; `KEEL_ROOT` names them where the tests were not built.
pub fn goldens() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = std::env::var_os("KEEL_ROOT").map_or_else(built, PathBuf::from);
    root.join("verify/goldens")
}

impl Golden {
    /// The file `verify/goldens/<stem>.safetensors`.
    ///
    /// # Panics
    /// When it is missing or not a golden, naming the file and the command that makes it.
    pub fn open(stem: &str) -> Golden {
        let path = goldens().join(format!("{stem}.safetensors"));
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; run python tools/goldens.py", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut made_by: BTreeMap<String, String> =
            header.metadata().clone().into_iter().flatten().collect();
        let config = made_by
            .remove("config")
            .unwrap_or_else(|| panic!("{stem}: no `config` in the metadata"));
        let config =
            serde_json::from_str(&config).unwrap_or_else(|e| panic!("{stem}: `config`: {e}"));
        let file = SafeTensors::deserialize(&bytes).expect("the header was read above");
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let elements = match view.dtype() {
                    Dtype::F32 => Elements::Floats(
                        view.data()
                            .as_chunks()
                            .0
                            .iter()
                            .map(|b| f64::from(f32::from_le_bytes(*b)))
                            .collect(),
                    ),
                    Dtype::F64 => Elements::Floats(
                        view.data()
                            .as_chunks()
                            .0
                            .iter()
                            .map(|b| f64::from_le_bytes(*b))
                            .collect(),
                    ),
                    Dtype::I32 => Elements::Integers(
                        view.data()
                            .as_chunks()
                            .0
                            .iter()
                            .map(|b| i32::from_le_bytes(*b))
                            .collect(),
                    ),
                    other => panic!("{stem}: {name} is {other:?}, wanted F32, F64 or I32"),
                };
                let shape = Shape::new(view.shape());
                (name.to_owned(), Tensor { shape, elements })
            })
            .collect();
        Golden {
            name: stem.to_owned(),
            config,
            made_by,
            tensors,
        }
    }

    /// The stem of every file made by tools/goldens.py, in order; images have a tool and a test of their own.
    pub fn stems() -> Vec<String> {
        let mut stems: Vec<String> = std::fs::read_dir(goldens())
            .expect("verify/goldens is part of the checkout")
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let stem = name.strip_suffix(".safetensors")?;
                let mut kinds = ["op_", "optimizer_", "model_"].into_iter();
                let is_ours = kinds.any(|kind| stem.starts_with(kind));
                is_ours.then(|| stem.to_owned())
            })
            .collect();
        stems.sort();
        stems
    }

    /// The cases of an op's file, in the order they were made; none for a model's.
    pub fn cases(&self) -> Vec<Golden> {
        let Some(cases) = self.config.get("cases").and_then(Json::as_object) else {
            return Vec::new();
        };
        cases
            .iter()
            .map(|(case, settings)| {
                let prefix = format!("{case}/");
                Golden {
                    name: format!("{}/{case}", self.name),
                    config: settings.clone(),
                    made_by: self.made_by.clone(),
                    tensors: self
                        .tensors
                        .iter()
                        .filter_map(|(name, tensor)| {
                            Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone()))
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// The same golden with one more float tensor, for ops that hold what PyTorch was given in another layout.
    pub fn with(mut self, name: &str, shape: impl Into<Shape>, floats: Vec<f64>) -> Golden {
        let shape = shape.into();
        assert_eq!(shape.numel(), floats.len(), "{}: {name}", self.name);
        let elements = Elements::Floats(floats);
        self.tensors
            .insert(name.to_owned(), Tensor { shape, elements });
        self
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What follows `prefix` in the names that begin with it: `names("parameter.")` lists a model's parameters.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        self.tensors
            .keys()
            .filter_map(|name| name.strip_prefix(prefix))
            .collect()
    }

    /// The shape of tensor `name`; a scalar is `[1]`.
    pub fn shape(&self, name: &str) -> Shape {
        self.tensor(name).shape
    }

    /// The elements of a float tensor.
    pub fn floats(&self, name: &str) -> &[f64] {
        match &self.tensor(name).elements {
            Elements::Floats(floats) => floats,
            Elements::Integers(_) => panic!("{}: {name} holds integers", self.name),
        }
    }

    /// The elements of a float tensor as f32: exact for inputs, cotangents and parameters.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.floats(name).iter().map(|&x| x as f32).collect()
    }

    /// The elements of an integer tensor.
    pub fn integers(&self, name: &str) -> &[i32] {
        match &self.tensor(name).elements {
            Elements::Integers(integers) => integers,
            Elements::Floats(_) => panic!("{}: {name} holds floats", self.name),
        }
    }

    /// The loss of a model's file.
    pub fn loss(&self) -> f64 {
        self.floats("loss")[0]
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }
}

#[test]
fn every_golden_says_what_made_it_and_is_complete() {
    let stems = Golden::stems();
    assert!(
        stems.len() >= 28,
        "28 goldens were made, {} are here",
        stems.len()
    );
    for stem in stems {
        let golden = Golden::open(&stem);
        for key in ["torch", "numpy", "seed"] {
            assert!(
                golden.made_by.contains_key(key),
                "{stem}: no `{key}` in the metadata"
            );
        }
        if stem.starts_with("model_") {
            assert!(golden.loss().is_finite(), "{stem}: the loss is not finite");
            assert_eq!(
                golden.names("parameter."),
                golden.names("gradient."),
                "{stem}"
            );
            for name in golden.names("parameter.") {
                let shape = golden.shape(&format!("parameter.{name}"));
                assert_eq!(shape, golden.shape(&format!("gradient.{name}")), "{name}");
                let exact = golden.floats(&format!("parameter.{name}"));
                assert!(exact.iter().all(|&x| f64::from(x as f32) == x), "{name}");
            }
        } else {
            let cases = golden.cases();
            let in_cases: usize = cases.iter().map(|case| case.names("").len()).sum();
            assert_eq!(in_cases, golden.names("").len(), "{stem}: stray tensors");
            for case in cases {
                for output in case.names("cotangent.") {
                    let shape = case.shape(&format!("value.{output}"));
                    assert_eq!(shape, case.shape(&format!("cotangent.{output}")));
                }
                assert!(!case.names("value.").is_empty(), "{}", case.name);
            }
        }
    }
}

#[test]
fn golden_reader_gives_a_cases_settings_values_and_integers() {
    let golden = Golden::open("op_linear_cross_entropy");
    let case = &golden.cases()[1];
    assert_eq!(case.name, "op_linear_cross_entropy/sample");
    assert_eq!(case.config["weighting"], "sample");
    assert!(case.integers("input.targets").contains(&-100));
    assert_eq!(case.f32s("input.hidden").len(), 23 * 16);
    assert!(case.has("gradient.hidden") && !case.has("gradient.targets"));
    // The weights of one sample add to one, and the last of the four samples has nothing supervised.
    let sum: f64 = case.floats("value.weights").iter().sum();
    assert!((sum - 3.0).abs() < 1e-12, "{sum}");
}
