//! What the emulator's library says of a kernel, derived in C++ from its entry point, and the arguments it is launched with.

use super::buffer::Buffer;
use super::ffi;
use crate::launch::{Element, MAX_DIMS, Parameter, Passed, TensorMap, check_arguments};
use keel_base::error::{Error, Result};
use std::ffi::CStr;
use std::fmt;

/// The element that `KeelElement` numbers so.
fn element(code: u8) -> Option<Element> {
    use Element::*;
    [F32, Bf16, I32, U32, U8, U64]
        .get(usize::from(code).checked_sub(1)?)
        .copied()
}

/// The words of an argument, in an order of bytes and an alignment that every type of parameter can be read from.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Words([u64; 16]);

/// `simt::kTensorMapMark` in `cuda/simt/hopper.h`.
const TENSOR_MAP_MARK: u64 = 0x7061_6d74;

/// One argument of a launch.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// `bytes` of a buffer from `offset` on, holding `element`s.
    Slice {
        /// The memory.
        buffer: &'a Buffer,
        /// What it holds there.
        element: Element,
        /// Where the slice starts, in bytes.
        offset: usize,
        /// How long it is.
        bytes: usize,
    },
    /// A null pointer, for parameters that may be absent.
    Null,
    /// A 32-bit signed integer.
    I32(i32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A 32-bit float.
    F32(f32),
    /// A tensor map of a buffer.
    TensorMap {
        /// The memory.
        buffer: &'a Buffer,
        /// The first of its bytes that the kernel may touch, where the map starts.
        offset: usize,
        /// How many bytes it may touch.
        bytes: usize,
        /// The map; what memory of an op it is of is not looked at.
        map: TensorMap,
        /// Whether the kernel may store through it.
        is_writable: bool,
    },
}

impl<'a> Argument<'a> {
    /// The whole of a buffer.
    pub fn whole(buffer: &'a Buffer) -> Argument<'a> {
        Argument::Slice {
            buffer,
            element: buffer.element(),
            offset: 0,
            bytes: buffer.bytes(),
        }
    }

    /// The value as a launch passes it: a tensor map as `simt::TensorMap`, all else little-endian in eight bytes.
    pub(super) fn words(&self) -> Words {
        let mut words = [0; 16];
        words[0] = self.bits();
        if let Argument::TensorMap { map, .. } = self {
            let shape = map.shape();
            let element = map.element().size() as u64;
            let span = shape.swizzle.span().unwrap_or(0);
            words[1] = words[0];
            words[0] =
                TENSOR_MAP_MARK | (shape.dims.len() as u64) << 32 | element << 40 | span << 48;
            words[2..][..shape.dims.len()].copy_from_slice(shape.dims);
            words[2 + MAX_DIMS] = element;
            words[3 + MAX_DIMS..][..shape.strides.len()].copy_from_slice(shape.strides);
            for (axis, extent) in shape.box_dims.iter().enumerate() {
                words[2 + 2 * MAX_DIMS + axis / 2] |= u64::from(*extent) << (axis % 2 * 32);
            }
        }
        Words(words)
    }

    /// The value in eight bytes; of what lies in a buffer, its address.
    pub(super) fn bits(&self) -> u64 {
        match *self {
            Argument::Slice { buffer, offset, .. } | Argument::TensorMap { buffer, offset, .. } => {
                buffer.address() as u64 + offset as u64
            }
            Argument::Null => 0,
            Argument::I32(value) => u64::from(value as u32),
            Argument::I64(value) => value as u64,
            Argument::U32(value) => u64::from(value),
            Argument::U64(value) => value,
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl Passed for Argument<'_> {
    fn fits(&self, parameter: Parameter) -> bool {
        match (self, parameter) {
            (Argument::Slice { element, .. }, Parameter::Pointer { element: want, .. }) => {
                Some(*element) == want
            }
            (Argument::Null, Parameter::Pointer { .. }) => true,
            (Argument::I32(_), Parameter::Signed(4)) => true,
            (Argument::I64(_), Parameter::Signed(8)) => true,
            (Argument::U32(_), Parameter::Unsigned(4)) => true,
            (Argument::U64(_), Parameter::Unsigned(8)) => true,
            (Argument::F32(_), Parameter::Float(4)) => true,
            (Argument::TensorMap { .. }, Parameter::TensorMap) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Slice { element, bytes, .. } => {
                write!(f, "{element}[{}]", bytes / element.size())
            }
            Argument::Null => f.write_str("a null pointer"),
            Argument::I32(value) => write!(f, "{value}i32"),
            Argument::I64(value) => write!(f, "{value}i64"),
            Argument::U32(value) => write!(f, "{value}u32"),
            Argument::U64(value) => write!(f, "{value}u64"),
            Argument::F32(value) => write!(f, "{value}f32"),
            Argument::TensorMap { map, .. } => map.fmt(f),
        }
    }
}

/// A kernel the emulator can run.
#[derive(Clone)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// What it takes, in order.
    pub parameters: Vec<Parameter>,
    /// Threads of a block; `None` when any number will do.
    pub threads: Option<u32>,
    /// Bytes of its shared storage, which a launch must give.
    pub shared_bytes: u32,
    pub(super) raw: &'static ffi::KeelKernel,
}

impl Kernel {
    pub(super) fn new(raw: &'static ffi::KeelKernel) -> Kernel {
        // SAFETY: the library's kernel table holds a zero-terminated name and `parameter_count` parameters that live as
        // long as the program.
        let (name, parameters) = unsafe {
            (
                CStr::from_ptr(raw.name),
                std::slice::from_raw_parts(raw.parameters, raw.parameter_count as usize),
            )
        };
        let parameters = parameters.iter().map(|p| match p.kind {
            0 => Parameter::Pointer {
                element: element(p.element),
                is_const: p.is_const != 0,
            },
            1 => Parameter::Signed(p.bytes),
            2 => Parameter::Unsigned(p.bytes),
            3 => Parameter::Float(p.bytes),
            5 => Parameter::TensorMap,
            _ => Parameter::Struct(p.bytes),
        });
        Kernel {
            name: name.to_str().expect("C++ identifiers are ASCII"),
            parameters: parameters.collect(),
            threads: (raw.threads != 0).then_some(raw.threads),
            shared_bytes: raw.shared_bytes,
            raw,
        }
    }

    /// Refuses arguments that are not what the entry point takes, or that reach past their buffer.
    pub(super) fn check(&self, arguments: &[Argument<'_>]) -> Result<()> {
        check_arguments(self.name, &self.parameters, arguments)?;
        for (i, argument) in arguments.iter().enumerate() {
            if let Argument::TensorMap {
                buffer,
                offset,
                bytes,
                map,
                ..
            } = *argument
            {
                if !offset.is_multiple_of(16) {
                    return Err(Error::kernel(format!(
                        "kernel {}, argument {i}: {map} begins at byte {offset} of a buffer, which is not a multiple of 16",
                        self.name
                    )));
                }
                let end = offset.checked_add(bytes);
                let reach = map.bytes();
                if end.is_none_or(|end| end > buffer.bytes())
                    || reach.is_none_or(|reach| reach > bytes as u64)
                {
                    return Err(Error::kernel(format!(
                        "kernel {}, argument {i}: {map} from byte {offset} on reaches past the end of {bytes} bytes of a \
                         buffer of {} bytes",
                        self.name,
                        buffer.bytes()
                    )));
                }
            }
            if let Argument::Slice {
                buffer,
                offset,
                bytes,
                element,
            } = *argument
            {
                // Alignment as well as length: the host would forgive an unaligned access, a GPU does not.
                let end = offset.checked_add(bytes);
                if end.is_none_or(|end| end > buffer.bytes()) || offset % element.size() != 0 {
                    return Err(Error::kernel(format!(
                        "kernel {}, argument {i}: {bytes} bytes of {element} from byte {offset} on do not lie in a \
                         buffer of {} bytes",
                        self.name,
                        buffer.bytes()
                    )));
                }
            }
        }
        Ok(())
    }
}
