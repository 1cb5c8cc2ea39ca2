//! The reference executor: every op by its definition, in f64, each value in an array of its own.
//!
//! It exists to be right and readable; nothing here is fast.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::collectives::Collectives;
use super::inputs::UnwrittenInputs;
use super::masters::{HeldMasters, expect_unshared};
use super::session_arenas::SessionArenas;
use super::{Executor, Session, expect_arena, expect_declared, expect_input};
use crate::program::{Place, Program};
use crate::tape::{
    Arena, Array, ArrayData, CollectivePart, CompileTarget, Instruction, ReferenceArgs, Target,
    Value,
};
use crate::tensor::DType;
use keel_base::error::Result;
use keel_base::random::scramble;
use keel_ranks::SharedEngine;

/// Runs programs in f64. See the module's documentation.
#[derive(Clone)]
pub struct ReferenceExecutor {
    parameters: Arc<Mutex<Parameters>>,
    rounding: Option<u64>,
    engine: Option<SharedEngine>,
}

/// Masters, and the same rounded to bf16.
#[derive(Clone, Debug)]
struct Parameters {
    masters: Vec<f64>,
    /// Of what is not, the place among the masters holds NaN: reading it shows.
    held: HeldMasters,
    bf16_copies: Vec<f64>,
}

fn to_bf16(value: f64) -> f64 {
    half::bf16::from_f64(value).to_f64()
}

impl ReferenceExecutor {
    /// An executor whose parameter arena has `elements` elements, all zero.
    pub fn new(elements: usize) -> ReferenceExecutor {
        ReferenceExecutor {
            parameters: Arc::new(Mutex::new(Parameters {
                masters: vec![0.0; elements],
                held: HeldMasters::all(elements),
                bf16_copies: vec![0.0; elements],
            })),
            rounding: None,
            engine: None,
        }
    }

    /// As [`ReferenceExecutor::new`], but every result of every op is moved by up to one rounding to its storage type, at
    /// random and differently in every run: what a perfect executor that stores values so between ops could not avoid. Error budgets are
    /// derived from it.
    pub fn rounding(elements: usize, seed: u64) -> ReferenceExecutor {
        ReferenceExecutor {
            rounding: Some(seed),
            ..ReferenceExecutor::new(elements)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parameters> {
        self.parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for ReferenceExecutor {
    fn describe(&self) -> String {
        "reference, f64".into()
    }

    fn compile_target(&self) -> CompileTarget {
        Target::Reference.into()
    }

    fn join(&mut self, engine: SharedEngine) -> Result<()> {
        self.engine = Some(engine);
        Ok(())
    }

    fn load(&self, program: Arc<Program>) -> Result<Box<dyn Session>> {
        let parameters = {
            let parameters = self.lock();
            parameters.held.expect_held(&program)?;
            // Shared before the lock is given back, so that nobody moves them in between.
            self.parameters.clone()
        };
        Ok(Box::new(ReferenceSession {
            parameters,
            fixed: SessionArenas::new(&program, |_, _, elements| Ok(vec![0.0; elements]))?,
            unwritten: UnwrittenInputs::of(&program),
            arrays: vec![None; program.values().len()],
            rounding: self.rounding,
            collectives: Collectives::new("reference", self.engine.as_ref(), &program)?,
            program,
        }))
    }

    fn write_parameters(&self, offset: usize, values: &[f32]) -> Result<()> {
        let mut parameters = self.lock();
        let copies = parameters.bf16_copies[offset..].iter_mut().zip(values);
        copies.for_each(|(copy, value)| *copy = to_bf16(f64::from(*value)));
        for (piece, place) in parameters.held.pieces(offset..offset + values.len()) {
            if place.is_some() {
                let from = &values[piece.start - offset..piece.end - offset];
                let masters = parameters.masters[piece].iter_mut().zip(from);
                masters.for_each(|(master, value)| *master = f64::from(*value));
            }
        }
        Ok(())
    }

    fn read_parameters(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        let parameters = self.lock();
        for (piece, place) in parameters.held.pieces(offset..offset + values.len()) {
            let from = match place {
                Some(_) => &parameters.masters,
                None => &parameters.bf16_copies,
            };
            let into = &mut values[piece.start - offset..piece.end - offset];
            let places = into.iter_mut().zip(&from[piece]);
            places.for_each(|(value, place)| *value = *place as f32);
        }
        Ok(())
    }

    fn hold_in_bf16(&self, in_bf16: &[Range<usize>]) -> Result<()> {
        let mut parameters = self.lock();
        let held = parameters.held.without(in_bf16)?;
        if held == parameters.held {
            return Ok(());
        }
        expect_unshared(&self.parameters)?;
        for (piece, place) in parameters.held.pieces(0..held.elements()) {
            if place.is_none() {
                let Parameters {
                    masters,
                    bf16_copies,
                    ..
                } = &mut *parameters;
                masters[piece.clone()].copy_from_slice(&bf16_copies[piece]);
            }
        }
        for range in in_bf16 {
            parameters.masters[range.clone()].fill(f64::NAN);
        }
        parameters.held = held;
        Ok(())
    }
}

struct ReferenceSession {
    program: Arc<Program>,
    parameters: Arc<Mutex<Parameters>>,
    /// The arenas only this session touches.
    fixed: SessionArenas<Vec<f64>>,
    unwritten: UnwrittenInputs,
    arrays: Vec<Option<Array>>,
    /// The state of the random roundings, where results are rounded.
    rounding: Option<u64>,
    collectives: Collectives,
}

/// Moves every number by up to half a unit in the last place of `dtype`, relative to its size.
fn round_at_random(values: &mut [f64], dtype: DType, state: &mut u64) {
    let epsilon = dtype.epsilon();
    for value in values {
        // SplitMix64 (Steele et al. 2014).
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let uniform = (scramble(*state) >> 11) as f64 / (1u64 << 53) as f64;
        *value *= 1.0 + epsilon * (uniform - 0.5);
    }
}

impl ReferenceSession {
    /// Calls `with` on the elements of a fixed arena.
    fn with_arena<T>(&mut self, arena: Arena, with: impl FnOnce(&mut [f64]) -> T) -> T {
        match arena {
            Arena::Parameters | Arena::ParametersBf16 => {
                let mut parameters = self
                    .parameters
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                with(match arena {
                    Arena::Parameters => &mut parameters.masters,
                    _ => &mut parameters.bf16_copies,
                })
            }
            _ => with(self.fixed.get_mut(arena)),
        }
    }

    /// The value as it stands now, in an array of its own: an op that updates a fixed arena must not see its own writes.
    fn load(&mut self, value: Value) -> Array {
        let ty = self.program.ty(value);
        match self.program.place(value) {
            Place::Fixed(arena, offset) => {
                let data = self.with_arena(arena, |all| all[offset..offset + ty.numel()].to_vec());
                Array {
                    shape: ty.shape,
                    data: ArrayData::Float(data),
                }
            }
            _ => {
                // Zeros where nothing was written: a value that a program drops may still be asked for.
                let array = self.arrays[value.index()].clone();
                array.unwrap_or_else(|| Array::zeros(&ty))
            }
        }
    }

    fn store(&mut self, value: Value, array: Array) {
        if let Place::Fixed(arena, offset) = self.program.place(value) {
            let values = array.float();
            self.with_arena(arena, |all| {
                let places = &mut all[offset..offset + values.len()];
                places.copy_from_slice(values);
                // Everything else is exact in f64. bf16 copies are rounded, because the update that makes them is
                // defined with the rounding.
                if arena.element() == DType::Bf16 {
                    places.iter_mut().for_each(|x| *x = to_bf16(*x));
                }
            });
        }
        self.arrays[value.index()] = Some(array);
    }

    /// Hands a part of a collective to the engine: floats as f64, whatever their type is elsewhere.
    fn run_collective(
        &mut self,
        instruction: &Instruction,
        (number, part): (usize, CollectivePart),
    ) -> Result<()> {
        match part {
            CollectivePart::Begin(kind) => {
                let sent = self.load(instruction.inputs[0]);
                let bytes = match &sent.data {
                    ArrayData::Float(values) => bytemuck::cast_slice(values),
                    ArrayData::Int(values) => bytemuck::cast_slice(values),
                };
                self.collectives.begin(number, kind, bytes)
            }
            CollectivePart::Finish => {
                let value = instruction.outputs[0];
                let mut arrived = Array::zeros(&self.program.ty(value));
                let bytes = match &mut arrived.data {
                    ArrayData::Float(values) => bytemuck::cast_slice_mut(values),
                    ArrayData::Int(values) => bytemuck::cast_slice_mut(values),
                };
                self.collectives.finish(number, bytes)?;
                self.store(value, arrived);
                Ok(())
            }
        }
    }

    fn run_op(&mut self, program: &Program, index: usize) -> Result<()> {
        let instruction = &program.ops()[index].instruction;
        if let Some(part) = instruction.op.collective() {
            return self.run_collective(instruction, part);
        }
        let inputs: Vec<Array> = instruction.inputs.iter().map(|v| self.load(*v)).collect();
        let inputs: Vec<&Array> = inputs.iter().collect();
        let mut outputs: Vec<Array> = instruction
            .outputs
            .iter()
            .map(|v| Array::zeros(&program.ty(*v)))
            .collect();
        instruction.op.reference(ReferenceArgs {
            inputs: &inputs,
            outputs: &mut outputs,
        });
        for (value, mut array) in instruction.outputs.iter().zip(outputs) {
            if let (Some(state), ArrayData::Float(values)) = (&mut self.rounding, &mut array.data) {
                round_at_random(values, program.ty(*value).dtype, state);
            }
            self.store(*value, array);
        }
        Ok(())
    }
}

impl Session for ReferenceSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn run(&mut self) -> Result<()> {
        self.unwritten.expect_none()?;
        let program = self.program.clone();
        (0..program.ops().len()).try_for_each(|index| self.run_op(&program, index))
    }

    fn run_gradients(&mut self) -> Result<()> {
        self.unwritten.expect_none_before_update()?;
        let program = self.program.clone();
        let mut gradients = (0..program.gradient_ops()).filter(|op| !program.is_exchange(*op));
        gradients.try_for_each(|index| self.run_op(&program, index))
    }

    fn run_timed(&mut self, seconds: &mut [f64]) -> Result<()> {
        self.unwritten.expect_none()?;
        let program = self.program.clone();
        for (index, seconds) in seconds.iter_mut().enumerate() {
            let start = Instant::now();
            self.run_op(&program, index)?;
            *seconds += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    fn write_f32(&mut self, input: &str, values: &[f32]) -> Result<()> {
        let values: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        self.write_f64(input, &values)
    }

    fn write_f64(&mut self, input: &str, values: &[f64]) -> Result<()> {
        let value = self.program.input(input)?;
        let ty = self.program.ty(value);
        let dtype = match ty.dtype {
            DType::Bf16 => DType::Bf16,
            _ => DType::F32,
        };
        expect_input(input, ty, dtype, values.len())?;
        let data = ArrayData::Float(values.to_vec());
        self.arrays[value.index()] = Some(Array {
            shape: ty.shape,
            data,
        });
        self.unwritten.written(value);
        Ok(())
    }

    fn write_i32(&mut self, input: &str, values: &[i32]) -> Result<()> {
        let value = self.program.input(input)?;
        let ty = self.program.ty(value);
        expect_input(input, ty, DType::I32, values.len())?;
        let data = ArrayData::Int(values.to_vec());
        self.arrays[value.index()] = Some(Array {
            shape: ty.shape,
            data,
        });
        self.unwritten.written(value);
        Ok(())
    }

    fn read_f64(&self, output: &str) -> Result<Vec<f64>> {
        let value = self.program.output(output)?;
        let array = self.arrays[value.index()].clone();
        let array = array.unwrap_or_else(|| Array::zeros(&self.program.ty(value)));
        Ok(match array.data {
            ArrayData::Float(values) => values,
            ArrayData::Int(values) => values.into_iter().map(f64::from).collect(),
        })
    }

    fn read_arena(&self, arena: Arena) -> Result<Vec<f32>> {
        expect_declared(&self.program, arena)?;
        let convert = |values: &[f64]| values.iter().map(|x| *x as f32).collect();
        Ok(match arena {
            Arena::Parameters | Arena::ParametersBf16 => {
                let parameters = self
                    .parameters
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                convert(match arena {
                    Arena::Parameters => &parameters.masters,
                    _ => &parameters.bf16_copies,
                })
            }
            _ => convert(self.fixed.get(arena)),
        })
    }

    fn write_arena(&mut self, arena: Arena, values: &[f32]) -> Result<()> {
        expect_declared(&self.program, arena)?;
        self.with_arena(arena, |all| {
            expect_arena(arena, all.len(), values.len())?;
            for (place, value) in all.iter_mut().zip(values) {
                *place = f64::from(*value);
            }
            Ok(())
        })
    }
}
