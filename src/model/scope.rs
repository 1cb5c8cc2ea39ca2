//! Names: where in the model a parameter stands.

use keel_base::error::Result;
use keel_engine::tape::{Init, ParameterSpec, Tape, Value};
use keel_engine::tensor::Shape;

/// A prefix of parameter names, for example `vision.blocks.3`.
#[derive(Clone, Debug)]
pub struct Scope {
    path: String,
}

impl Scope {
    /// The scope of a module such as `vision`.
    pub fn module(name: &str) -> Scope {
        Scope {
            path: name.to_owned(),
        }
    }

    /// A part of this scope.
    pub fn child(&self, name: impl std::fmt::Display) -> Scope {
        Scope {
            path: format!("{}.{name}", self.path),
        }
    }

    /// The full name of `name` here.
    pub fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// The prefix.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Declares a weight matrix [rows, columns]; weight decay applies to it.
    ///
    /// # Errors
    /// When the layout holds another shape under that name.
    pub fn matrix(
        &self,
        tape: &mut Tape,
        name: &str,
        shape: [usize; 2],
        init: Init,
    ) -> Result<Value> {
        self.declare(tape, name, shape.into(), init, true)
    }

    /// Declares a vector, a table or a scalar; weight decay leaves it alone.
    ///
    /// # Errors
    /// When the layout holds another shape under that name.
    pub fn plain(
        &self,
        tape: &mut Tape,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Value> {
        self.declare(tape, name, shape.into(), init, false)
    }

    fn declare(
        &self,
        tape: &mut Tape,
        name: &str,
        shape: Shape,
        init: Init,
        decays: bool,
    ) -> Result<Value> {
        tape.parameter(ParameterSpec {
            name: self.full(name),
            shape,
            init,
            decays,
        })
    }
}
