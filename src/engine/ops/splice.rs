//! Image tokens put in the place of placeholder tokens.
//!
//! Forward: the k-th place of batch row b where ids = image_id takes image[b, k]; every other place keeps its text row,
//! as do placeholders beyond the Ti image tokens. Image tokens without a place are dropped.
//! Backward: dtext = dy with the overwritten rows zero; dimage[b, k] = dy at its place, zero without one.
//!
//! Shapes: text [B, T, D], ids i32 [B, T], image [B, Ti, D], y [B, T, D]. Saved: the ids. Nothing is computed; every
//! byte is read and written once.

use rayon::prelude::*;

use crate::launch::kernels::constants::splice::SPLICE_WARPS;
use crate::launch::{Argument, Family, Launch, blocks, index, kernels};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// Replaces the rows of `text` at placeholders by image tokens, in order.
///
/// Shapes: `text` [B, T, D], `ids` i32 [B, T], `image` [B, Ti, D]; the result is [B, T, D]. The k-th occurrence of
/// `image_id` in row b takes image token k of row b. Placeholders beyond Ti keep their text row; image tokens beyond
/// the placeholders are dropped and get a gradient of zero. Overwritten text rows get a gradient of zero.
///
/// # Errors
/// [`Error::Shape`] when a shape differs.
pub fn splice(
    tape: &mut Tape,
    text: Value,
    ids: Value,
    image: Value,
    image_id: i32,
) -> Result<Value> {
    tape.record_one(Splice { image_id }, &[text, ids, image])
}

/// As [`splice`] into a value that keeps its contents from run to run ([`Tape::cached`]): the rows of `cache` [B, T, D]
/// at `place_id` of `places` i32 [B, T] become those of `rows` [B, Ti, D], the others stay. Returns the cache as it is
/// then.
///
/// # Errors
/// [`Error::Shape`] when a shape differs.
pub fn splice_into_cache(
    tape: &mut Tape,
    cache: Value,
    places: Value,
    rows: Value,
    place_id: i32,
) -> Result<Value> {
    let op = Splice { image_id: place_id };
    Ok(tape.record_update(op, &[cache, places, rows])?[0])
}

/// A launch of a kernel of `cuda/splice.cu` that writes `rows` rows: its pointers, then rows, T, D, Ti and the image id.
fn launch(
    family: Family,
    (text, rows): (TensorType, usize),
    mut arguments: Vec<Argument>,
    (image_tokens, image_id): (usize, i32),
) -> Result<Vec<Launch>> {
    let kernel = family.of(text.dtype)?;
    let &[_, tokens, columns] = text.shape.dims() else {
        unreachable!("inferred")
    };
    arguments.extend([
        Argument::I64(rows as i64),
        index(kernel, "the number of tokens", tokens)?,
        index(kernel, "the number of columns", columns)?,
        index(kernel, "the number of image tokens", image_tokens)?,
        Argument::I32(image_id),
    ]);
    let blocks = blocks(kernel, rows, SPLICE_WARPS)?;
    Ok(vec![Launch::new(kernel, blocks, arguments)])
}

/// Inputs: text, ids, image. Output: y.
#[derive(Clone, Copy, Debug)]
struct Splice {
    image_id: i32,
}

/// Inputs: dy, ids. Output: dtext.
#[derive(Clone, Copy, Debug)]
struct SpliceText {
    image_id: i32,
    /// Ti.
    image_tokens: usize,
}

/// Inputs: dy, ids, and the sum to add to where `accumulates`. Output: dimage.
#[derive(Clone, Copy, Debug)]
struct SpliceImage {
    image_id: i32,
    /// Ti.
    image_tokens: usize,
    accumulates: bool,
}

/// The places of one row's image tokens: the k-th item is the place of image token k.
fn places(ids: &[i32], image_id: i32, image_tokens: usize) -> impl Iterator<Item = usize> {
    ids.iter()
        .enumerate()
        .filter(move |(_, id)| **id == image_id)
        .map(|(place, _)| place)
        .take(image_tokens)
}

/// B, T and D of a tensor with a row for each of `ids`.
fn sizes(op: &'static str, tensor: &str, rows: TensorType, ids: TensorType) -> Result<[usize; 3]> {
    match (rows.shape.dims(), ids.shape.dims()) {
        (&[batch, tokens, width], ids_dims)
            if ids_dims == [batch, tokens]
                && ids.dtype == DType::I32
                && tokens * width > 0
                && rows.dtype.is_float() =>
        {
            Ok([batch, tokens, width])
        }
        _ => {
            let got = format!("{rows} with ids {ids}");
            Err(Error::shape(
                op,
                tensor,
                "floats [B, T, D] with ids i32 [B, T]",
                got,
            ))
        }
    }
}

impl Splice {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let text = args.inputs.of_or_in_place::<T>(0);
        let (ids, image) = (args.inputs.i32(1), args.inputs.of::<T>(2));
        let y = args.outputs.in_order().next::<T>();
        let (width, tokens) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        let image_tokens = args.input_types[2].shape.dims()[1];
        y.par_chunks_mut(tokens * width)
            .zip(ids.par_chunks(tokens))
            .zip(image.par_chunks(image_tokens * width))
            .enumerate()
            .for_each(|(batch, ((y, ids), image))| {
                if let Some(text) = text {
                    y.copy_from_slice(&text[batch * tokens * width..][..tokens * width]);
                }
                // Text everywhere first, image tokens over it: placeholders without an image token keep their text.
                let images = image.chunks_exact(width);
                for (place, image) in places(ids, self.image_id, image_tokens).zip(images) {
                    y[place * width..][..width].copy_from_slice(image);
                }
            });
    }
}

impl Op for Splice {
    fn name(&self) -> &'static str {
        "splice"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [text, ids, image] = [inputs[0], inputs[1], inputs[2]];
        let [batch, _, width] = sizes(self.name(), "text", text, ids)?;
        match *image.shape.dims() {
            [images, tokens, columns]
                if images == batch
                    && tokens > 0
                    && columns == width
                    && image.dtype == text.dtype =>
            {
                Ok(vec![text])
            }
            _ => {
                let want = format!("{} [{batch}, Ti, {width}]", text.dtype);
                Err(Error::shape(self.name(), "image", want, image))
            }
        }
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([text, ids, image], [y]) = args.split();
        let (width, tokens) = (text.columns(), ids.columns());
        let image_tokens = image.shape.dims()[1];
        y.float_mut().copy_from_slice(text.float());
        for (batch, ids) in ids.int().chunks_exact(tokens).enumerate() {
            for (k, place) in places(ids, self.image_id, image_tokens).enumerate() {
                let from = (batch * image_tokens + k) * width;
                let to = (batch * tokens + place) * width;
                y.float_mut()[to..to + width].copy_from_slice(&image.float()[from..from + width]);
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
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
        ];
        let written = (inputs[0], inputs[0].shape.rows());
        let image_tokens = inputs[2].shape.dims()[1];
        let image = (image_tokens, self.image_id);
        launch(kernels::SPLICE_FORWARD, written, arguments, image)
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let image_id = self.image_id;
        let image_tokens = backward.tape.shape(backward.inputs[2]).dims()[1];
        let inputs = [backward.gradient(0), backward.inputs[1]];
        // The image's first: dtext may then take dy's place.
        let d_image = if backward.needs(2) {
            let op = SpliceImage {
                image_id,
                image_tokens,
                accumulates: false,
            };
            Some(backward.tape.record_one(op, &inputs)?)
        } else {
            None
        };
        let d_text = if backward.needs(0) {
            let op = SpliceText {
                image_id,
                image_tokens,
            };
            Some(backward.tape.record_one(op, &inputs)?)
        } else {
            None
        };
        Ok(vec![d_text, None, d_image])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // At most as many rows are read as written.
        Cost::streaming(0.0, &inputs[..2], outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

impl SpliceText {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (dy, ids) = (args.inputs.of_or_in_place::<T>(0), args.inputs.i32(1));
        let d_text = args.outputs.in_order().next::<T>();
        let (width, tokens) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        d_text
            .par_chunks_mut(tokens * width)
            .zip(ids.par_chunks(tokens))
            .enumerate()
            .for_each(|(batch, (d_text, ids))| {
                if let Some(dy) = dy {
                    d_text.copy_from_slice(&dy[batch * tokens * width..][..tokens * width]);
                }
                for place in places(ids, self.image_id, self.image_tokens) {
                    d_text[place * width..][..width].fill(T::default());
                }
            });
    }
}

impl Op for SpliceText {
    fn name(&self) -> &'static str {
        "splice_backward_text"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        sizes(self.name(), "dy", inputs[0], inputs[1])?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy, ids], [d_text]) = args.split();
        let (width, tokens) = (dy.columns(), ids.columns());
        d_text.float_mut().copy_from_slice(dy.float());
        for (batch, ids) in ids.int().chunks_exact(tokens).enumerate() {
            for place in places(ids, self.image_id, self.image_tokens) {
                let at = (batch * tokens + place) * width;
                d_text.float_mut()[at..at + width].fill(0.0);
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
        let arguments = vec![Argument::output(0), Argument::input(0), Argument::input(1)];
        let written = (inputs[0], inputs[0].shape.rows());
        let image = (self.image_tokens, self.image_id);
        launch(kernels::SPLICE_BACKWARD_TEXT, written, arguments, image)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

impl SpliceImage {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (dy, ids) = (args.inputs.of::<T>(0), args.inputs.i32(1));
        let sum = if self.accumulates {
            args.inputs.of_or_in_place::<T>(2)
        } else {
            None
        };
        let d_image = args.outputs.in_order().next::<T>();
        let (width, tokens) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        let one = self.image_tokens * width;
        d_image
            .par_chunks_mut(one)
            .zip(ids.par_chunks(tokens))
            .zip(dy.par_chunks(tokens * width))
            .enumerate()
            .for_each(|(batch, ((d_image, ids), dy))| {
                match sum {
                    Some(sum) => d_image.copy_from_slice(&sum[batch * one..][..one]),
                    None if self.accumulates => {}
                    None => d_image.fill(T::default()),
                }
                let images = d_image.chunks_exact_mut(width);
                let places = places(ids, self.image_id, self.image_tokens);
                for (d_image, place) in images.zip(places) {
                    for (sum, dy) in d_image.iter_mut().zip(&dy[place * width..]) {
                        *sum = T::rounded(sum.widen() + dy.widen());
                    }
                }
            });
    }
}

impl Op for SpliceImage {
    fn name(&self) -> &'static str {
        "splice_backward_image"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [batch, _, width] = sizes(self.name(), "dy", inputs[0], inputs[1])?;
        let shape = [batch, self.image_tokens, width];
        Ok(vec![TensorType::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, ids) = (args.inputs[0], args.inputs[1]);
        let (width, tokens) = (dy.columns(), ids.columns());
        let d_image = args.outputs[0].float_mut();
        if self.accumulates {
            d_image.copy_from_slice(args.inputs[2].float());
        }
        for (batch, ids) in ids.int().chunks_exact(tokens).enumerate() {
            for (k, place) in places(ids, self.image_id, self.image_tokens).enumerate() {
                for column in 0..width {
                    let from = (batch * tokens + place) * width + column;
                    d_image[(batch * self.image_tokens + k) * width + column] += dy.float()[from];
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
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            if self.accumulates {
                Argument::input(2)
            } else {
                Argument::Null
            },
        ];
        let written = (inputs[0], outputs[0].shape.rows());
        let image = (self.image_tokens, self.image_id);
        launch(kernels::SPLICE_BACKWARD_IMAGE, written, arguments, image)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, &[outputs[0], inputs[1]], outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            let op: Box<dyn Op> = Box::new(SpliceImage {
                accumulates: true,
                ..*self
            });
            op
        })
    }
}
