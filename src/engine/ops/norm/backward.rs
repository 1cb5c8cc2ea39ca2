//! dx, dweight and dbias of a normalisation in one pass over dy and x.

use rayon::prelude::*;

use super::{Kind, kernel};
use crate::launch::kernels::constants::partials::PARTIAL_COLUMNS;
use crate::launch::{Argument, Launch, blocks, index, kernels};
use crate::ops::rows::RowKernel;
use crate::ops::shapes::{expect_float, expect_type, expect_vector};
use crate::ops::special::dot;
use crate::tape::{CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, with_element};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;
use keel_cpu::simd::dispatch;

/// The most tasks, each with partial sums of its own for dweight and dbias.
const TASKS: usize = 64;

/// The fewest rows of a task.
const ROWS_PER_TASK: usize = 32;

/// Inputs dy [.., C], x [.., C], weight [C], statistics [M, 2], then the gradient [.., C] to add to; outputs dx [.., C],
/// then dweight [C] and, for LayerNorm, dbias [C].
#[derive(Clone, Copy, Debug)]
pub(super) struct NormBackward {
    pub kind: Kind,
    pub gives_parameters: bool,
    pub accumulates: bool,
}

impl NormBackward {
    /// How many sums over rows the op makes.
    fn parameters(&self) -> usize {
        match (self.gives_parameters, self.kind) {
            (false, _) => 0,
            (true, Kind::Rms) => 1,
            (true, Kind::Layer) => 2,
        }
    }

    fn kernel(&self, dy: TensorType) -> Result<RowKernel> {
        let widths = match self.kind {
            Kind::Layer => kernels::LAYER_NORM_BACKWARD_WIDTHS,
            Kind::Rms => kernels::RMS_NORM_BACKWARD_WIDTHS,
        };
        RowKernel::new(widths, dy.shape.columns(), dy.dtype)
    }
}

/// Rows of one task, from the shape alone.
fn rows_per_task(rows: usize) -> usize {
    rows.div_ceil(TASKS).max(ROWS_PER_TASK)
}

impl NormBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let shape = args.input_types[0].shape;
        let columns = shape.columns();
        let (dy, x) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        let (weight, statistics) = (args.inputs.f32(2), args.inputs.f32(3));
        let sum = self.accumulates.then(|| args.inputs.of_or_in_place::<T>(4));
        let mut outputs = args.outputs.in_order();
        let dx = outputs.next::<T>();
        let rows = rows_per_task(shape.rows());
        let chunk = rows * columns;
        // A task has partial sums of its own for dweight and dbias, however many threads there are: they are added in
        // the order of the tasks below.
        let run = |task: usize, dx: &mut [T], partial: &mut [f32]| {
            let first = task * chunk;
            let sum = match sum {
                None => kernel::Sum::None,
                Some(None) => kernel::Sum::InPlace,
                Some(Some(sum)) => kernel::Sum::From(&sum[first..][..dx.len()]),
            };
            let statistics = &statistics[2 * task * rows..][..2 * dx.len() / columns];
            partial.fill(0.0);
            dispatch(kernel::Backward {
                kind: self.kind,
                dy: &dy[first..][..dx.len()],
                x: &x[first..][..dx.len()],
                weight,
                statistics,
                sum,
                dx,
                partial,
            });
        };
        if chunk == 0 {
            return;
        }
        let size = self.parameters() * columns;
        if size == 0 {
            dx.par_chunks_mut(chunk)
                .enumerate()
                .for_each(|(task, dx)| run(task, dx, &mut []));
            return;
        }
        let tasks = dx.len().div_ceil(chunk);
        let partials = &mut args.workspace[..tasks * size];
        (dx.par_chunks_mut(chunk), partials.par_chunks_mut(size))
            .into_par_iter()
            .enumerate()
            .for_each(|(task, (dx, partial))| run(task, dx, partial));
        for index in 0..self.parameters() {
            let total = outputs.next::<f32>();
            total.fill(0.0);
            for partial in partials.chunks_exact(size) {
                for (total, partial) in total.iter_mut().zip(&partial[index * columns..]) {
                    *total += partial;
                }
            }
        }
    }
}

impl Op for NormBackward {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Layer => "layer_norm_backward",
            Kind::Rms => "rms_norm_backward",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let dy = inputs[0];
        expect_float(op, "dy", 1, dy)?;
        expect_type(op, "x", "like dy", dy, inputs[1])?;
        let vector = (DType::F32, dy.shape.columns());
        expect_vector(op, "weight", "[C]", vector, inputs[2])?;
        let statistics = TensorType::f32([dy.shape.rows(), 2]);
        expect_type(op, "statistics", "[M, 2]", statistics, inputs[3])?;
        if let Some(sum) = inputs.get(4) {
            expect_type(op, "the gradient to add to", "like dy", dy, *sum)?;
        }
        let mut outputs = vec![dy];
        let vector = TensorType::f32([dy.shape.columns()]);
        outputs.extend(std::iter::repeat_n(vector, self.parameters()));
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let shape = args.inputs[0].shape;
        let columns = shape.columns();
        let (weight, statistics) = (args.inputs[2].float(), args.inputs[3].float());
        for row in 0..shape.rows() {
            let at = row * columns;
            let dy = &args.inputs[0].float()[at..][..columns];
            let x = &args.inputs[1].float()[at..][..columns];
            let (mean, rstd) = (statistics[2 * row], statistics[2 * row + 1]);
            let h: Vec<f64> = x.iter().map(|x| (x - mean) * rstd).collect();
            let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
            let mean_g = match self.kind {
                Kind::Layer => g.iter().sum::<f64>() / columns as f64,
                Kind::Rms => 0.0,
            };
            let mean_gh = dot(&g, &h) / columns as f64;
            for column in 0..columns {
                let mut dx = rstd * (g[column] - mean_g - h[column] * mean_gh);
                if self.accumulates {
                    dx += args.inputs[4].float()[at + column];
                }
                args.outputs[0].float_mut()[at + column] = dx;
                if self.parameters() > 0 {
                    args.outputs[1].float_mut()[column] += dy[column] * h[column];
                }
                if self.parameters() > 1 {
                    args.outputs[2].float_mut()[column] += dy[column];
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (rows, columns) = (inputs[0].shape.rows(), inputs[0].shape.columns());
        let kernel = self.kernel(inputs[0])?;
        let blocks_of_rows = kernel.persistent_blocks(rows);
        let count = index(kernel.entry, "the number of columns", columns)?;
        let partials = match self.parameters() {
            0 => Argument::Null,
            _ => Argument::workspace(DType::F32),
        };
        let addend = if self.accumulates {
            Argument::input(4)
        } else {
            Argument::Null
        };
        let arguments = vec![
            Argument::output(0),
            partials,
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::input(3),
            addend,
            Argument::I64(rows as i64),
            count,
        ];
        let mut launches = vec![Launch::new(kernel.entry, blocks_of_rows, arguments)];
        if self.parameters() > 0 {
            let name = kernels::NORM_BACKWARD_PARAMETERS_F32;
            let dbias = match self.kind {
                Kind::Layer => Argument::output(2),
                Kind::Rms => Argument::Null,
            };
            let arguments = vec![
                Argument::output(1),
                dbias,
                partials,
                Argument::I32(blocks_of_rows as i32),
                count,
            ];
            let mut launch = Launch::new(name, blocks(name, columns, PARTIAL_COLUMNS)?, arguments);
            launch.grid[1] = self.parameters() as u32;
            launches.push(launch);
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let each = match self.kind {
            Kind::Layer => 11.0,
            Kind::Rms => 9.0,
        } + 2.0 * self.parameters() as f64
            + f64::from(u8::from(self.accumulates));
        Cost::streaming(each * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 4)] } else { &[] }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let shape = inputs[0].shape;
        let tasks = match compile_target.target {
            Target::Cuda => self
                .kernel(inputs[0])
                .map_or(0, |kernel| kernel.persistent_blocks(shape.rows()) as usize),
            _ => shape.rows().div_ceil(rows_per_task(shape.rows())),
        };
        tasks * self.parameters() * shape.columns() * size_of::<f32>()
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            Box::new(NormBackward {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }
}
