//! The products of the Hopper tier against the portable ones, launch by launch on shapes too small for an op to choose them: the
//! same bits under every schedule, and every bug planted where its threads and agents wait for each other is caught.

use super::{buffer, emulator, product, transposed, whole};
use crate::harness::Random;
use keel::error::Result;
use keel::executor::kernel_table::IMAGES;
use keel::executor::simt::{Argument, Buffer, Element, Emulator, Kernel, Options};
use keel::launch::kernels::{
    LINEAR_BACKWARD_INPUT_HOPPER_BF16, LINEAR_BACKWARD_INPUT_SMALL_BF16,
    LINEAR_BACKWARD_WEIGHT_HOPPER_BF16, LINEAR_FORWARD_HOPPER_BF16, LINEAR_FORWARD_SMALL_BF16,
};
use keel::launch::{Mapped, Swizzle, TensorMap, TensorMapShape};
use keel::tensor::DType;

/// One product: y = scale · f(x·Wᵀ + bias) + residual.
#[derive(Clone, Copy, Debug)]
struct Trial {
    rows: usize,
    columns: usize,
    inner: usize,
    has_bias: bool,
    has_z: bool,
    has_scale: bool,
    /// None, a tensor of its own, or y itself.
    residual: Residual,
    activation: i32,
    blocks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Residual {
    None,
    Apart,
    InPlace,
}

const PLAIN: Trial = Trial {
    rows: 200,
    columns: 328,
    inner: 136,
    has_bias: false,
    has_z: false,
    has_scale: false,
    residual: Residual::None,
    activation: 0,
    blocks: 2,
};

/// Ragged in every direction, one tile and several a block, with and without each part.
const TRIALS: [Trial; 7] = [
    PLAIN,
    Trial {
        rows: 1,
        columns: 8,
        inner: 8,
        blocks: 1,
        has_bias: true,
        ..PLAIN
    },
    Trial {
        rows: 129,
        columns: 264,
        inner: 520,
        has_bias: true,
        has_z: true,
        activation: 1,
        ..PLAIN
    },
    Trial {
        has_bias: true,
        has_z: true,
        has_scale: true,
        residual: Residual::Apart,
        blocks: 4,
        ..PLAIN
    },
    Trial {
        rows: 64,
        columns: 256,
        inner: 64,
        residual: Residual::InPlace,
        activation: 2,
        blocks: 1,
        ..PLAIN
    },
    Trial {
        rows: 1100,
        columns: 72,
        inner: 24,
        has_bias: true,
        residual: Residual::InPlace,
        blocks: 3,
        ..PLAIN
    },
    Trial {
        rows: 65,
        columns: 520,
        inner: 72,
        activation: 3,
        has_z: true,
        blocks: 1,
        ..PLAIN
    },
];

/// The memory of a trial.
struct Tensors {
    x: Buffer,
    weight: Buffer,
    bias: Buffer,
    scale: Buffer,
    residual: Buffer,
    y: Buffer,
    z: Buffer,
}

impl Trial {
    fn tensors(&self, emulator: &Emulator) -> Result<Tensors> {
        let mut random = Random::new(11);
        let mut bf16 = |count: usize, scale: f64| -> Result<Buffer> {
            let mut buffer = emulator.allocate(Element::Bf16, count)?;
            let values = random.normals(count, scale).into_iter();
            let bits: Vec<u16> = values.map(|x| half::bf16::from_f32(x).to_bits()).collect();
            buffer.write(&bits)?;
            Ok(buffer)
        };
        let (x, weight) = (
            bf16(self.rows * self.inner, 1.0)?,
            bf16(self.columns * self.inner, (self.inner as f64).powf(-0.5))?,
        );
        let size = self.rows * self.columns;
        let (residual, y, z) = (bf16(size, 1.0)?, bf16(size, 1.0)?, bf16(size, 1.0)?);
        let mut random = Random::new(12);
        let mut vector = || -> Result<Buffer> {
            let mut buffer = emulator.allocate(Element::F32, self.columns)?;
            buffer.write(&random.normals(self.columns, 1.0))?;
            Ok(buffer)
        };
        Ok(Tensors {
            bias: vector()?,
            scale: vector()?,
            x,
            weight,
            residual,
            y,
            z,
        })
    }

    /// What the kernel leaves in y and, where it is wanted, in z.
    fn found(&self, tensors: &Tensors) -> Result<Vec<u16>> {
        let mut found = tensors.y.read::<u16>()?;
        if self.has_z {
            found.extend(tensors.z.read::<u16>()?);
        }
        Ok(found)
    }

    fn sizes(&self) -> [Argument<'static>; 4] {
        let size = |value: usize| Argument::I32(value as i32);
        [
            size(self.rows),
            size(self.columns),
            size(self.inner),
            Argument::I32(self.activation),
        ]
    }

    fn portable(&self, emulator: &Emulator) -> Result<Vec<u16>> {
        let tensors = self.tensors(emulator)?;
        let kernel = emulator.kernel(LINEAR_FORWARD_SMALL_BF16.name)?;
        let part = |has: bool, buffer| match has {
            true => Argument::whole(buffer),
            false => Argument::Null,
        };
        let residual = match self.residual {
            Residual::None => Argument::Null,
            Residual::Apart => Argument::whole(&tensors.residual),
            Residual::InPlace => Argument::whole(&tensors.y),
        };
        let mut arguments = vec![
            Argument::whole(&tensors.y),
            part(self.has_z, &tensors.z),
            Argument::whole(&tensors.x),
            Argument::whole(&tensors.weight),
            part(self.has_bias, &tensors.bias),
            residual,
            part(self.has_scale, &tensors.scale),
        ];
        arguments.extend(self.sizes());
        let tiles = self.rows.div_ceil(64) * self.columns.div_ceil(64);
        let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
        emulator.launch(
            &kernel,
            [tiles as u32, 1, 1],
            block,
            kernel.shared_bytes,
            &arguments,
            &Options::default(),
        )?;
        self.found(&tensors)
    }

    fn hopper(&self, emulator: &Emulator, options: &Options<'_>) -> Result<Vec<u16>> {
        let tensors = self.tensors(emulator)?;
        let kernel = emulator.kernel(LINEAR_FORWARD_HOPPER_BF16.name)?;
        let result = [self.rows, self.columns];
        let part = |has: bool, buffer| match has {
            true => Argument::whole(buffer),
            false => Argument::Null,
        };
        let z = if self.has_z { &tensors.z } else { &tensors.y };
        let mut arguments = vec![
            map(&tensors.y, result, 64, true)?,
            map(z, result, 64, true)?,
            map(&tensors.x, [self.rows, self.inner], 128, false)?,
            map(&tensors.weight, [self.columns, self.inner], 256, false)?,
            map(self.beside(&tensors), result, 64, false)?,
            part(self.has_bias, &tensors.bias),
            part(self.has_scale, &tensors.scale),
        ];
        arguments.extend(self.sizes());
        arguments.push(Argument::I32(i32::from(self.has_z)));
        arguments.push(Argument::I32(i32::from(self.residual != Residual::None)));
        self.launch(emulator, &kernel, &arguments, options)?;
        self.found(&tensors)
    }

    /// What the result is combined with, or the result itself.
    fn beside<'a>(&self, tensors: &'a Tensors) -> &'a Buffer {
        match self.residual {
            Residual::Apart => &tensors.residual,
            _ => &tensors.y,
        }
    }

    fn launch(
        &self,
        emulator: &Emulator,
        kernel: &Kernel,
        arguments: &[Argument<'_>],
        options: &Options<'_>,
    ) -> Result<()> {
        let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
        let options = Options {
            shared_limit: Options::for_kernel(LINEAR_FORWARD_HOPPER_BF16).shared_limit,
            ..*options
        };
        let grid = [self.blocks, 1, 1];
        let bytes = kernel.shared_bytes;
        emulator.launch(kernel, grid, block, bytes, arguments, &options)
    }

    /// The gradient of an input [rows, columns] for dy [rows, inner], which is x here, and the weight [inner, columns]: on either
    /// tier. What stands beside is z for an activation, else a gradient that is added to.
    fn gradient(&self, emulator: &Emulator, options: Option<&Options<'_>>) -> Result<Vec<u16>> {
        let tensors = self.tensors(emulator)?;
        let (beside, result) = (self.beside(&tensors), [self.rows, self.columns]);
        let size = |value: usize| Argument::I32(value as i32);
        let sizes = [
            size(self.rows),
            size(self.inner),
            size(self.columns),
            Argument::I32(self.activation),
        ];
        let has_other = self.residual != Residual::None;
        match options {
            Some(options) => {
                let kernel = emulator.kernel(LINEAR_BACKWARD_INPUT_HOPPER_BF16.name)?;
                let mut arguments = vec![
                    map(&tensors.y, result, 64, true)?,
                    map(&tensors.x, [self.rows, self.inner], 128, false)?,
                    map(&tensors.weight, [self.inner, self.columns], 64, false)?,
                    map(beside, result, 64, false)?,
                ];
                arguments.extend(sizes);
                arguments.push(Argument::I32(i32::from(has_other)));
                self.launch(emulator, &kernel, &arguments, options)?;
            }
            None => {
                let kernel = emulator.kernel(LINEAR_BACKWARD_INPUT_SMALL_BF16.name)?;
                let mut arguments = vec![
                    Argument::whole(&tensors.y),
                    Argument::whole(&tensors.x),
                    Argument::whole(&tensors.weight),
                    match has_other {
                        true => Argument::whole(beside),
                        false => Argument::Null,
                    },
                ];
                arguments.extend(sizes);
                let tiles = self.rows.div_ceil(64) * self.columns.div_ceil(64);
                let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
                let (grid, bytes) = ([tiles as u32, 1, 1], kernel.shared_bytes);
                let options = Options::default();
                emulator.launch(&kernel, grid, block, bytes, &arguments, &options)?;
            }
        }
        tensors.y.read::<u16>()
    }
}

/// A map of rows that follow each other, in boxes of 64 columns.
fn map(
    buffer: &Buffer,
    [rows, columns]: [usize; 2],
    box_rows: u32,
    is_writable: bool,
) -> Result<Argument<'_>> {
    let shape = TensorMapShape {
        dims: &[columns as u64, rows as u64],
        strides: &[2 * columns as u64],
        box_dims: &[64, box_rows],
        swizzle: Swizzle::Span128,
    };
    let entry = LINEAR_FORWARD_HOPPER_BF16;
    let map = TensorMap::new(entry, Mapped::Input(0), 0, DType::Bf16, shape)?;
    Ok(Argument::TensorMap {
        buffer,
        offset: 0,
        bytes: buffer.bytes(),
        map,
        is_writable,
    })
}

#[test]
fn the_product_on_hopper_has_the_portable_ones_bits_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    for trial in TRIALS {
        let right = trial.portable(&emulator).expect("the kernel is clean");
        for options in Options::proof(5) {
            let found = trial
                .hopper(&emulator, &options)
                .unwrap_or_else(|problem| panic!("{trial:?} under {options:?}: {problem}"));
            assert!(found == right, "{trial:?} under {options:?} has other bits");
        }
    }
}

#[test]
fn the_gradient_on_hopper_has_the_portable_ones_bits_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    for trial in TRIALS {
        // An activation has its z beside; without, there may be nothing.
        let residual = match (trial.activation, trial.residual) {
            (1.., Residual::None) => Residual::Apart,
            (_, residual) => residual,
        };
        let trial = Trial { residual, ..trial };
        let right = trial
            .gradient(&emulator, None)
            .expect("the kernel is clean");
        for options in Options::proof(6) {
            let found = trial
                .gradient(&emulator, Some(&options))
                .unwrap_or_else(|problem| panic!("{trial:?} under {options:?}: {problem}"));
            assert!(found == right, "{trial:?} under {options:?} has other bits");
        }
    }
}

#[test]
fn bugs_planted_in_the_product_on_hopper_are_caught() {
    let Some(emulator) = emulator() else { return };
    let trial = Trial {
        rows: 129,
        columns: 264,
        inner: 520,
        has_bias: true,
        has_z: true,
        residual: Residual::Apart,
        ..PLAIN
    };
    let right = trial.portable(&emulator).expect("the kernel is clean");
    let bugs = [
        "a stage is filled before it is free",
        "a stage is read before it is full",
        "a stage is given back while it is read",
        "a buffer is written while it is stored",
        "a piece is stored before it is written",
        "the tensor beside is read before it is there",
        "no fence after the barriers are made",
    ];
    // What copies see of ordinary stores, only the checked build knows.
    let checked = ["no fence before a piece is stored"];
    let bugs = bugs
        .iter()
        .chain(checked.iter().filter(|_| emulator.is_checked()));
    for bug in bugs {
        let bug = format!("product_hopper: {bug}");
        let mut caught = 0;
        for options in Options::proof(5) {
            let options = Options {
                planted_bug: Some(&bug),
                ..options
            };
            caught += usize::from(match trial.hopper(&emulator, &options) {
                Ok(found) => found != right,
                Err(problem) => !problem.to_string().contains("PLANTED_BUG"),
            });
        }
        assert!(caught > 0, "{bug} is not caught");
        if emulator.is_checked() {
            assert_eq!(caught, Options::proof(5).len(), "{bug}");
        }
    }
}

/// A weight's gradient of whole numbers, of which every sum is exact: dW [columns, inner] and db over `rows`, `steps` of 64 a split.
#[derive(Clone, Copy, Debug)]
struct WeightTrial {
    rows: usize,
    columns: usize,
    inner: usize,
    steps: usize,
    adds: bool,
    blocks: u32,
}

const WEIGHT_TRIALS: [WeightTrial; 4] = [
    WeightTrial {
        rows: 200,
        columns: 328,
        inner: 136,
        steps: 2,
        adds: false,
        blocks: 5,
    },
    WeightTrial {
        rows: 1,
        columns: 8,
        inner: 8,
        steps: 1,
        adds: true,
        blocks: 1,
    },
    WeightTrial {
        rows: 700,
        columns: 136,
        inner: 264,
        steps: 3,
        adds: false,
        blocks: 3,
    },
    WeightTrial {
        rows: 256,
        columns: 64,
        inner: 520,
        steps: 4,
        adds: true,
        blocks: 2,
    },
];

impl WeightTrial {
    /// dW and db, with their parts added, as they are and as they must be.
    fn run(&self, emulator: &Emulator, options: &Options<'_>) -> Result<[Vec<f32>; 2]> {
        let mut random = Random::new(13);
        let dy = whole(&mut random, self.rows, self.columns, 3, false);
        let x = whole(&mut random, self.rows, self.inner, 3, false);
        let before = whole(&mut random, self.columns, self.inner, 9, false);
        let count = self.columns * self.inner;
        let mut right = product(
            &transposed(&dy, self.rows, self.columns),
            &x,
            self.columns,
            self.inner,
            self.rows,
        );
        if self.adds {
            right
                .iter_mut()
                .zip(&before)
                .for_each(|(sum, before)| *sum += *before as f32);
        }
        let db = |n: usize| {
            (0..self.rows)
                .map(|r| dy[r * self.columns + n] as f32)
                .sum::<f32>()
        };
        right.extend((0..self.columns).map(db));

        let splits = self.rows.div_ceil(64).div_ceil(self.steps);
        let (dy, x) = (
            buffer(emulator, Element::Bf16, &dy)?,
            buffer(emulator, Element::Bf16, &x)?,
        );
        let mut dw = emulator.allocate(Element::F32, splits * count)?;
        if self.adds {
            let before: Vec<f32> = before.iter().map(|x| *x as f32).collect();
            dw.write(&before)?;
        }
        let sums = emulator.allocate(Element::F32, splits * self.columns)?;
        let size = |value: usize| Argument::I32(value as i32);
        let arguments = [
            Argument::whole(&dw),
            Argument::whole(&sums),
            match self.adds {
                true => Argument::whole(&dw),
                false => Argument::Null,
            },
            map(&dy, [self.rows, self.columns], 64, false)?,
            map(&x, [self.rows, self.inner], 64, false)?,
            size(self.rows),
            size(self.columns),
            size(self.inner),
            size(self.steps),
        ];
        let kernel = emulator.kernel(LINEAR_BACKWARD_WEIGHT_HOPPER_BF16.name)?;
        let block = [kernel.threads.expect("its blocks are fixed"), 1, 1];
        let options = Options {
            shared_limit: Options::for_kernel(LINEAR_BACKWARD_WEIGHT_HOPPER_BF16).shared_limit,
            ..*options
        };
        let (grid, bytes) = ([self.blocks, 1, 1], kernel.shared_bytes);
        emulator.launch(&kernel, grid, block, bytes, &arguments, &options)?;
        let added = |parts: Vec<f32>, each: usize| -> Vec<f32> {
            (0..each)
                .map(|i| parts.iter().skip(i).step_by(each).sum())
                .collect()
        };
        let mut found = added(dw.read()?, count);
        found.extend(added(sums.read()?, self.columns));
        Ok([found, right])
    }
}

#[test]
fn the_weight_gradient_on_hopper_is_exact_on_whole_numbers_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    for trial in WEIGHT_TRIALS {
        for options in Options::proof(7) {
            let [found, right] = trial
                .run(&emulator, &options)
                .unwrap_or_else(|problem| panic!("{trial:?} under {options:?}: {problem}"));
            assert!(found == right, "{trial:?} under {options:?}");
        }
    }
}

#[test]
fn bugs_planted_in_the_weight_gradient_on_hopper_are_caught() {
    let Some(emulator) = emulator() else { return };
    let bugs = [
        "a stage is filled before it is free",
        "a stage is read before it is full",
    ];
    let checked = ["no fence after the ones are written"];
    let checked = checked.iter().filter(|_| emulator.is_checked());
    for bug in bugs.iter().chain(checked) {
        let bug = format!("weight_hopper: {bug}");
        let mut caught = 0;
        for options in Options::proof(5) {
            let options = Options {
                planted_bug: Some(&bug),
                ..options
            };
            caught += usize::from(match WEIGHT_TRIALS[2].run(&emulator, &options) {
                Ok([found, right]) => found != right,
                Err(problem) => !problem.to_string().contains("PLANTED_BUG"),
            });
        }
        assert!(caught > 0, "{bug} is not caught");
        if emulator.is_checked() {
            assert_eq!(caught, Options::proof(5).len(), "{bug}");
        }
    }
}

#[test]
fn their_machine_code_multiplies_by_warpgroups_and_copies_by_tensor_maps() {
    let image = IMAGES.iter().find(|image| image.stem == "linear_sm90");
    let Some(image) = image.filter(|image| !image.census.is_empty()) else {
        return eprintln!("not run: this program was built without nvcc or its disassembler");
    };
    // Of 64 along k four products of 16. Boxes of a stage, and what stands beside of four pieces; z and y, or dx, of four pieces.
    // The weight's gradient has its loop with sums of columns, which are four products more, and without.
    let kernels = [
        (LINEAR_FORWARD_HOPPER_BF16, 4, 2 + 4, 2 * 4),
        (LINEAR_BACKWARD_INPUT_HOPPER_BF16, 4, 1 + 4 + 4, 4),
        (LINEAR_BACKWARD_WEIGHT_HOPPER_BF16, 3 * 4, 2 + 4, 0),
    ];
    for (kernel, products, loads, stores) in kernels {
        let mut lines = image.census.lines();
        let line = lines.find(|line| line.split(' ').any(|word| word == kernel.name));
        let line = line.expect("the image holds the kernel");
        let count = |name: &str| {
            let found = line.split(' ').filter_map(|word| word.split_once('='));
            found
                .filter(|(known, _)| known.split('.').next() == Some(name))
                .map(|(_, count)| count.parse::<usize>().expect("a number"))
                .sum::<usize>()
        };
        for (name, times) in [
            ("HGMMA", products),
            ("UTMALDG", loads),
            ("UTMASTG", stores),
            ("HMMA", 0),
            ("LDGSTS", 0),
            ("LDL", 0),
            ("STL", 0),
        ] {
            assert_eq!(count(name), times, "{name} in {line}");
        }
    }
    // Of the warnings that products were serialised or register plans ignored: C7504 to C7519.
    assert!(!image.ptxas.contains("(C75"), "{}", image.ptxas);
    let spills = image.ptxas.matches("bytes spill stores").count();
    let without = image
        .ptxas
        .matches(" 0 bytes spill stores, 0 bytes spill loads")
        .count();
    assert_eq!((spills, without), (3, 3), "{}", image.ptxas);
}
