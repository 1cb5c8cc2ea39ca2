//! Parameters: how they are declared by models and where they lie in the flat parameter arena.
//!
//! One layout serves every program of a run. Parameters are ordered by module (the name up to the first dot), then
//! those that weight decay applies to before the others, so that what a stage trains is a handful of contiguous runs
//! and the optimiser makes one pass over each.

use std::collections::HashMap;

use crate::tensor::Shape;
use keel_base::error::{Error, Result};

/// How a parameter gets its first value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element the same.
    Constant(f32),
    /// Normal with mean zero and this standard deviation.
    Normal(f32),
    /// Uniform in ±sqrt(6 / (rows + columns)) (Glorot and Bengio 2010, eq. 16).
    XavierUniform,
}

/// A parameter as a model declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Full name, modules separated by dots; the first is the module that stages train or freeze.
    pub name: String,
    /// Dimensions, row-major.
    pub shape: Shape,
    /// First value.
    pub init: Init,
    /// Whether weight decay applies: matrices decay, vectors and tables of positions do not.
    pub decays: bool,
}

impl ParameterSpec {
    /// The module: the name up to the first dot.
    pub fn module(&self) -> &str {
        self.name.split('.').next().unwrap_or(&self.name)
    }
}

/// A parameter and its place in the flat arena.
#[derive(Clone, Debug)]
pub struct ParameterEntry {
    /// The declaration.
    pub spec: ParameterSpec,
    /// First element in the arena.
    pub offset: usize,
    /// Elements reserved: the count rounded up to [`ParameterLayout::ALIGNMENT`].
    pub reserved: usize,
}

/// The place of every parameter of a model in one flat arena of f32.
#[derive(Clone, Debug, Default)]
pub struct ParameterLayout {
    entries: Vec<ParameterEntry>,
    by_name: HashMap<String, usize>,
    elements: usize,
}

impl ParameterLayout {
    /// Every parameter starts at a multiple of this many elements (64 bytes).
    pub const ALIGNMENT: usize = 16;

    /// Lays out the declared parameters.
    pub fn new(specs: &[ParameterSpec]) -> ParameterLayout {
        let mut modules: Vec<&str> = Vec::new();
        for spec in specs {
            if !modules.contains(&spec.module()) {
                modules.push(spec.module());
            }
        }
        let mut ordered: Vec<&ParameterSpec> = specs.iter().collect();
        // A stable sort: within a module and its two halves parameters keep the order of declaration, which is the
        // order of use.
        ordered.sort_by_key(|spec| {
            let module = modules.iter().position(|m| *m == spec.module());
            (module, !spec.decays)
        });
        let mut layout = ParameterLayout::default();
        for spec in ordered {
            let reserved = spec.shape.numel().next_multiple_of(Self::ALIGNMENT);
            let before = layout
                .by_name
                .insert(spec.name.clone(), layout.entries.len());
            assert!(
                before.is_none(),
                "parameter {} is declared twice",
                spec.name
            );
            layout.entries.push(ParameterEntry {
                spec: spec.clone(),
                offset: layout.elements,
                reserved,
            });
            layout.elements += reserved;
        }
        layout
    }

    /// All parameters in arena order.
    pub fn entries(&self) -> &[ParameterEntry] {
        &self.entries
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&ParameterEntry> {
        self.by_name.get(name).map(|&index| &self.entries[index])
    }

    /// Its index in [`ParameterLayout::entries`].
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Elements of the arena, padding included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The number of trained numbers, padding excluded, of the modules that `select` accepts.
    pub fn count(&self, select: impl Fn(&str) -> bool) -> usize {
        self.entries
            .iter()
            .filter(|entry| select(entry.spec.module()))
            .map(|entry| entry.spec.shape.numel())
            .sum()
    }

    /// The modules in arena order.
    pub fn modules(&self) -> Vec<&str> {
        let mut modules: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if modules.last() != Some(&entry.spec.module()) {
                modules.push(entry.spec.module());
            }
        }
        modules
    }

    /// Checks that `spec` is laid out here under the same shape.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the parameter when it is absent or of another shape.
    pub fn expect(&self, spec: &ParameterSpec) -> Result<&ParameterEntry> {
        match self.get(&spec.name) {
            Some(entry) if entry.spec.shape == spec.shape => Ok(entry),
            Some(entry) => Err(Error::setting(
                format!("parameter {}", spec.name),
                format!("the shape {} the layout was made with", entry.spec.shape),
                spec.shape,
            )),
            None => Err(Error::setting(
                format!("parameter {}", spec.name),
                "a parameter of the layout the run was made with",
                "none of that name",
            )),
        }
    }
}
