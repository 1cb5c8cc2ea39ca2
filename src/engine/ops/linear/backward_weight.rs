//! dW = dyᵀ·x with db = Σ over rows of dy, and that sum alone.

use super::backward_input::copy;
use super::hopper::{HopperWeight, OnHopper};
use super::tiles::{Tiling, size};
use crate::launch::kernels::constants::kernel::{MULTIPROCESSORS, WARP_LANES};
use crate::launch::kernels::constants::linear::ELEMENTWISE_THREADS;
use crate::launch::{Argument, KernelEntry, Launch, Mapped, blocks, index, kernels, vector};
use crate::ops::shapes::expect_float;
use crate::tape::{
    CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, Tier, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_cpu::matmul::{self, Rows, RowsMut};
use keel_cpu::reduce;

/// Inputs dy [.., N], x [.., K], then the gradient f32 [N, K] to add to; outputs dW f32 [N, K], then db f32 [N].
/// Gradients of parameters are f32 whatever the activations are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinearBackwardWeight {
    pub has_bias: bool,
    pub accumulates: bool,
}

impl LinearBackwardWeight {
    /// The product by its types.
    fn on_hopper(&self, dy: TensorType, x: TensorType) -> HopperWeight {
        HopperWeight {
            rows: dy.shape.rows(),
            columns: dy.shape.columns(),
            inner: x.shape.columns(),
        }
    }

    /// The launches on Hopper's own instructions: the product, whose parts and sums of columns are then added in order.
    fn launches_on_hopper(&self, product: HopperWeight) -> Result<Vec<Launch>> {
        let kernel = kernels::LINEAR_BACKWARD_WEIGHT_HOPPER_BF16;
        let splits = product.splits();
        let parts = Argument::workspace(DType::F32);
        let sums = Argument::Workspace {
            offset: product.part_elements() * size_of::<f32>(),
            element: DType::F32,
        };
        let addend = if self.accumulates {
            Argument::input(2)
        } else {
            Argument::Null
        };
        let is_split = splits > 1;
        let arguments = vec![
            if is_split { parts } else { Argument::output(0) },
            if self.has_bias { sums } else { Argument::Null },
            if is_split { Argument::Null } else { addend },
            Argument::TensorMap(product.operand(kernel, Mapped::Input(0), product.columns)?),
            Argument::TensorMap(product.operand(kernel, Mapped::Input(1), product.inner)?),
            size(kernel, "the number of rows", product.rows)?,
            size(kernel, "the number of columns", product.columns)?,
            size(kernel, "the inner length", product.inner)?,
            index(kernel, "the number of steps", product.steps())?,
        ];
        let mut launches = vec![Launch::new(kernel, product.blocks(), arguments)];
        if is_split {
            let count = product.columns * product.inner;
            launches.push(sum(Argument::output(0), parts, addend, count, splits)?);
        }
        if self.has_bias {
            let (db, count) = (Argument::output(1), product.columns);
            launches.push(sum(db, sums, Argument::Null, count, splits)?);
        }
        Ok(launches)
    }

    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (dy, x) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        let sum = self.accumulates.then(|| args.inputs.f32_or_in_place(2));
        let rows = args.input_types[0].shape.rows();
        let (columns, inner) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        let (dw, mut db) = if self.has_bias {
            let [dw, db] = args.outputs.f32();
            (dw, Some(db))
        } else {
            let [dw] = args.outputs.f32();
            (dw, None)
        };
        if let Some(Some(sum)) = sum {
            copy(sum, dw);
        }
        if let (true, Some(db)) = (self.accumulates, &mut db) {
            // The product adds to both; only dW has something to be added to.
            db.fill(0.0);
        }
        matmul::linear_backward_weight(
            Rows::new(dy, rows, columns),
            Rows::new(x, rows, inner),
            RowsMut::new(dw, columns, inner),
            db,
            self.accumulates,
            args.workspace,
        );
    }
}

impl Op for LinearBackwardWeight {
    fn name(&self) -> &'static str {
        "linear_backward_weight"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (dy, x) = (inputs[0], inputs[1]);
        expect_float(op, "dy", 1, dy)?;
        if dy.shape.rows() != x.shape.rows() || dy.dtype != x.dtype {
            let want = format!("{} with {} rows", dy.dtype, dy.shape.rows());
            return Err(Error::shape(op, "x", want, x));
        }
        let dw = TensorType::f32([dy.shape.columns(), x.shape.columns()]);
        if let Some(sum) = inputs.get(2)
            && *sum != dw
        {
            return Err(Error::shape(op, "the gradient to add to", dw, sum));
        }
        let db = TensorType::f32([dy.shape.columns()]);
        Ok(if self.has_bias {
            vec![dw, db]
        } else {
            vec![dw]
        })
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, x) = (args.inputs[0].float(), args.inputs[1].float());
        let (columns, inner) = (args.inputs[0].columns(), args.inputs[1].columns());
        let rows = args.inputs[0].shape.rows();
        let dw = args.outputs[0].float_mut();
        dw.fill(0.0);
        // Row by row, so that elements are read and added to in their order.
        for row in 0..rows {
            for n in 0..columns {
                let dy = dy[row * columns + n];
                let dw = &mut dw[n * inner..][..inner];
                for (dw, x) in dw.iter_mut().zip(&x[row * inner..]) {
                    *dw += dy * x;
                }
            }
        }
        if self.accumulates {
            for (dw, sum) in dw.iter_mut().zip(args.inputs[2].float()) {
                *dw += sum;
            }
        }
        if self.has_bias {
            for (n, db) in args.outputs[1].float_mut().iter_mut().enumerate() {
                *db = dy.iter().skip(n).step_by(columns).sum();
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
        compile_target: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (dy, x) = (inputs[0], inputs[1]);
        let on_hopper = self.on_hopper(dy, x);
        if on_hopper.is_chosen(dy.dtype, compile_target) {
            return self.launches_on_hopper(on_hopper);
        }
        let product = BackwardWeight {
            rows: dy.shape.rows(),
            columns: dy.shape.columns(),
            inner: x.shape.columns(),
            dtype: dy.dtype,
            accumulates: self.accumulates,
            has_bias: self.has_bias,
        };
        let kernel = product
            .tiling()
            .kernel(kernels::LINEAR_BACKWARD_WEIGHT_SIZES, dy.dtype)?;
        let operands = vec![
            Argument::input(0),
            Argument::input(1),
            size(kernel, "the number of rows", product.rows)?,
            size(kernel, "the number of columns", product.columns)?,
            size(kernel, "the inner length", product.inner)?,
        ];
        product.launches(kernel, operands)
    }

    fn keeps_portable(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        tier: Tier,
    ) -> Option<String> {
        self.on_hopper(inputs[0], inputs[1])
            .keeps_portable(inputs[0].dtype, tier)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        let bias = if self.has_bias { inputs[0].numel() } else { 0 };
        Cost::streaming(product + bias as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let (dy, x) = (inputs[0].shape, inputs[1].shape);
        let on_hopper = self.on_hopper(inputs[0], inputs[1]);
        match compile_target.target {
            Target::Cuda if on_hopper.is_chosen(inputs[0].dtype, compile_target) => {
                on_hopper.workspace(self.has_bias)
            }
            Target::Cpu { .. } => {
                let (rows, inner, columns) = (dy.rows(), x.columns(), dy.columns());
                matmul::linear_backward_weight_workspace(rows, inner, columns) * size_of::<f32>()
            }
            Target::Cuda => BackwardWeight {
                rows: dy.rows(),
                columns: dy.columns(),
                inner: x.columns(),
                dtype: inputs[0].dtype,
                accumulates: self.accumulates,
                has_bias: self.has_bias,
            }
            .workspace(),
            Target::Reference => 0,
        }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            Box::new(LinearBackwardWeight {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// The sum over rows of dy [.., N]: the bias's gradient where the weight is frozen.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnSum;

impl ColumnSum {
    /// How many rows of dy a block adds up, and into how many parts that makes of the sum: enough blocks for a chip, and
    /// enough rows for each.
    fn parts(dy: TensorType) -> (usize, usize) {
        const BLOCKS: usize = 2 * MULTIPROCESSORS;
        const FEWEST_ROWS: usize = 64;
        let (rows, columns) = (dy.shape.rows(), dy.shape.columns());
        // A block has a tile of columns to itself, so splitting rows is what makes enough blocks where dy is narrow.
        // From the shape alone, as everything that decides the order of a sum.
        let across = columns.div_ceil(WARP_LANES * vector(dy)).max(1);
        let height = rows.div_ceil(BLOCKS.div_ceil(across)).max(FEWEST_ROWS);
        (height, rows.div_ceil(height).max(1))
    }
}

/// A weight's gradient as launches, for linear layers and the patch embedding: dW f32 [columns, inner] over `rows` rows,
/// and db f32 [columns].
pub(in crate::ops) struct BackwardWeight {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    /// The type of dy.
    pub dtype: DType,
    /// Whether input 2 is added to dW.
    pub accumulates: bool,
    /// Whether output 1 is db.
    pub has_bias: bool,
}

impl BackwardWeight {
    /// How the product is cut.
    pub fn tiling(&self) -> Tiling {
        Tiling::split([self.columns, self.inner, self.rows], self.dtype)
    }

    /// Elements of the parts of dW in the workspace; none when there is only one.
    fn part_elements(&self) -> usize {
        match self.tiling().splits {
            1 => 0,
            splits => splits * self.columns * self.inner,
        }
    }

    /// Parts of db: one for each split and tile across.
    fn sum_parts(&self) -> usize {
        let tiling = self.tiling();
        tiling.splits * tiling.across
    }

    /// Bytes of workspace: the parts of dW, then those of db.
    pub fn workspace(&self) -> usize {
        let sums = if self.has_bias {
            self.sum_parts() * self.columns
        } else {
            0
        };
        (self.part_elements() + sums) * size_of::<f32>()
    }

    /// The launches; `operands` are the product kernel's arguments between the sums and the steps.
    pub fn launches(
        &self,
        kernel: &'static KernelEntry,
        operands: Vec<Argument>,
    ) -> Result<Vec<Launch>> {
        if self.columns * self.inner == 0 {
            return Ok(Vec::new());
        }
        let tiling = self.tiling();
        // A split product writes its parts to the workspace and a second kernel adds them in order; what the gradient
        // is added to joins there, so that it is added once. Unsplit, the product adds it itself.
        let is_split = tiling.splits > 1;
        let addend = if self.accumulates {
            Argument::input(2)
        } else {
            Argument::Null
        };
        let parts = Argument::workspace(DType::F32);
        let sums = Argument::Workspace {
            offset: self.part_elements() * size_of::<f32>(),
            element: DType::F32,
        };
        let mut arguments = vec![
            if is_split { parts } else { Argument::output(0) },
            if self.has_bias { sums } else { Argument::Null },
            if is_split { Argument::Null } else { addend },
        ];
        arguments.extend(operands);
        arguments.push(index(kernel, "the number of steps", tiling.steps)?);
        let mut launches = vec![Launch::on_grid(kernel, tiling.grid(kernel)?, arguments)];
        if is_split {
            let count = self.columns * self.inner;
            launches.push(sum(
                Argument::output(0),
                parts,
                addend,
                count,
                tiling.splits,
            )?);
        }
        if self.has_bias {
            let (db, count) = (Argument::output(1), self.columns);
            launches.push(sum(db, sums, Argument::Null, count, self.sum_parts())?);
        }
        Ok(launches)
    }
}

/// out [count] = addend + the sum of `parts` parts that lie one after the other.
fn sum(
    out: Argument,
    part: Argument,
    addend: Argument,
    count: usize,
    parts: usize,
) -> Result<Launch> {
    let kernel = kernels::LINEAR_SUM_F32;
    let arguments = vec![
        out,
        part,
        addend,
        Argument::I64(count as i64),
        index(kernel, "the number of parts", parts)?,
    ];
    Ok(Launch::new(
        kernel,
        blocks(kernel, count, 4 * ELEMENTWISE_THREADS)?,
        arguments,
    ))
}

impl ColumnSum {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let shape = args.input_types[0].shape;
        let dy = Rows::new(args.inputs.of::<T>(0), shape.rows(), shape.columns());
        let [db] = args.outputs.f32();
        reduce::column_sums(dy, db, false, args.workspace);
    }
}

impl Op for ColumnSum {
    fn name(&self) -> &'static str {
        "linear_backward_bias"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        expect_float(self.name(), "dy", 1, inputs[0])?;
        Ok(vec![TensorType::f32([inputs[0].shape.columns()])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [db]) = args.split();
        let columns = dy.columns();
        for (n, db) in db.float_mut().iter_mut().enumerate() {
            *db = dy.float().iter().skip(n).step_by(columns).sum();
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
        let dy = inputs[0];
        let (rows, columns) = (dy.shape.rows(), dy.shape.columns());
        if columns == 0 {
            return Ok(Vec::new());
        }
        let kernel = kernels::LINEAR_BACKWARD_BIAS.of(dy.dtype)?;
        let (height, parts) = ColumnSum::parts(dy);
        let across = blocks(kernel, columns, WARP_LANES * vector(dy))?;
        let part = match parts {
            1 => Argument::output(0),
            _ => Argument::workspace(DType::F32),
        };
        let arguments = vec![
            part,
            Argument::input(0),
            size(kernel, "the number of rows", rows)?,
            size(kernel, "the number of columns", columns)?,
            size(kernel, "a block's share of the rows", height)?,
        ];
        let grid = [across, parts as u32, 1];
        let mut launches = vec![Launch::on_grid(kernel, grid, arguments)];
        if parts > 1 {
            launches.push(sum(
                Argument::output(0),
                part,
                Argument::Null,
                columns,
                parts,
            )?);
        }
        Ok(launches)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let (rows, columns) = (inputs[0].shape.rows(), inputs[0].shape.columns());
        match compile_target.target {
            Target::Cpu { .. } => {
                reduce::sum_over_rows_workspace(rows, columns, columns) * size_of::<f32>()
            }
            Target::Cuda => match ColumnSum::parts(inputs[0]) {
                (_, 1) => 0,
                (_, parts) => parts * columns * size_of::<f32>(),
            },
            Target::Reference => 0,
        }
    }
}
