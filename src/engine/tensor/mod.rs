//! What a value is: its data type, its shape, and the errors every floor above reports.

mod dtype;
mod shape;

pub use dtype::DType;
pub use shape::{Shape, TensorType};
