//! Where the pixels of a patch lie.

use rayon::prelude::*;

use crate::launch::{Argument, KernelEntry};
use crate::ops::linear::tiles::size;
use crate::tensor::{DType, Shape};
use keel_base::error::Result;
use keel_cpu::Stored;
use keel_cpu::simd::{Simd, Task, dispatch};

/// Patches that one task lays out, in whole lines of the grid.
const ROWS_PER_TASK: usize = 64;

/// The grid of patches over images [B, Ci, h, w].
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub batch: usize,
    pub colours: usize,
    pub height: usize,
    pub width: usize,
    pub patch: usize,
}

impl Grid {
    /// The grid over images of this shape, or nothing when they are not [B, Ci, h, w] with room for a patch.
    pub fn new(images: Shape, patch: usize) -> Option<Grid> {
        let &[batch, colours, height, width] = images.dims() else {
            return None;
        };
        (patch > 0 && height >= patch && width >= patch).then_some(Grid {
            batch,
            colours,
            height,
            width,
            patch,
        })
    }

    /// Patches of one image.
    pub fn tokens(&self) -> usize {
        (self.height / self.patch) * (self.width / self.patch)
    }

    /// Patches of all images.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens()
    }

    /// Pixels of a patch, all colours.
    pub fn pixels(&self) -> usize {
        self.colours * self.patch * self.patch
    }

    /// Floats of memory that hold the patches of all images as numbers of `dtype`.
    pub fn gathered(&self, dtype: DType) -> usize {
        (self.rows() * self.pixels() * dtype.size()).div_ceil(size_of::<f32>())
    }

    /// The images' sizes as the kernels of `cuda/patch_embed.cu` take them: B, Ci, h, w, P.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Kernel`] when the kernels' 32-bit numbers cannot count the patches or their pixels.
    pub fn arguments(&self, kernel: &KernelEntry) -> Result<[Argument; 5]> {
        size(kernel, "the number of patches", self.rows())?;
        size(kernel, "the pixels of a patch", self.pixels())?;
        let side = |what, pixels| size(kernel, what, pixels);
        Ok([
            side("the batch", self.batch)?,
            side("the number of colours", self.colours)?,
            side("the images' height", self.height)?,
            side("the images' width", self.width)?,
            side("the patch", self.patch)?,
        ])
    }

    /// The first elements in the images of the runs of `patch` pixels that make up patch `row` of all images, in the
    /// order of the weight's columns.
    pub fn runs(self, row: usize) -> impl Iterator<Item = usize> {
        let across = self.width / self.patch;
        let (sample, token) = (row / self.tokens(), row % self.tokens());
        let (top, left) = (token / across * self.patch, token % across * self.patch);
        (0..self.colours).flat_map(move |colour| {
            (0..self.patch).map(move |line| {
                ((sample * self.colours + colour) * self.height + top + line) * self.width + left
            })
        })
    }

    /// The first elements in the images of the lines of pixels that line `line` of the grids of all images covers: those of
    /// the runs of its first patch.
    fn lines(self, line: usize) -> impl Iterator<Item = usize> {
        let down = self.height / self.patch;
        let (sample, top) = (line / down, line % down * self.patch);
        (0..self.colours).flat_map(move |colour| {
            let first = (sample * self.colours + colour) * self.height + top;
            (0..self.patch).map(move |line| (first + line) * self.width)
        })
    }

    /// Lays the patches of all images out as the rows of `to` [B·T, Ci·P·P], rounded where that is stored in bf16.
    pub fn gather<T: Stored>(self, images: &[f32], to: &mut [T]) {
        let across = self.width / self.patch;
        let lines = (ROWS_PER_TASK / across).max(1);
        let chunk = lines * across * self.pixels();
        to.par_chunks_mut(chunk).enumerate().for_each(|(task, to)| {
            dispatch(Gather {
                grid: self,
                images,
                line: task * lines,
                to,
            });
        });
    }

    /// Adds the rows of `patches` [B·T, Ci·P·P] to the pixels they came from.
    pub fn scatter(self, patches: &[f32], images: &mut [f32]) {
        // A task is an image: patches do not overlap, but those of one image share its memory.
        let elements = self.colours * self.height * self.width;
        images
            .par_chunks_mut(elements)
            .enumerate()
            .for_each(|(sample, image)| {
                for token in 0..self.tokens() {
                    let row = sample * self.tokens() + token;
                    let patch = &patches[row * self.pixels()..][..self.pixels()];
                    let runs = self.runs(row).zip(patch.chunks_exact(self.patch));
                    for (start, from) in runs {
                        let to = &mut image[start - sample * elements..];
                        for (to, from) in to.iter_mut().zip(from) {
                            *to += from;
                        }
                    }
                }
            });
    }
}

/// Whole lines of the grid to lay out, the first of which is `line` of all images.
struct Gather<'a, T> {
    grid: Grid,
    images: &'a [f32],
    line: usize,
    to: &'a mut [T],
}

impl<T: Stored> Task for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        // Runs are so short that a loop over a number of pixels that is not known to the compiler takes longer to begin and
        // end than to do its work: the usual sizes have code of their own.
        match self.grid.patch {
            8 => self.in_runs::<8>(),
            14 => self.in_runs::<14>(),
            16 => self.in_runs::<16>(),
            32 => self.in_runs::<32>(),
            _ => self.in_any_runs(),
        }
    }
}

impl<T: Stored> Gather<'_, T> {
    /// Lays out patches of P pixels a side.
    #[inline(always)]
    fn in_runs<const P: usize>(self) {
        let Grid { width, .. } = self.grid;
        let (across, pixels, images) = (width / P, self.grid.pixels(), self.images);
        let lines = self.to.chunks_exact_mut(across * pixels);
        for (line, to) in lines.enumerate() {
            for (run, start) in self.grid.lines(self.line + line).enumerate() {
                let (from, _) = images[start..][..across * P].as_chunks::<P>();
                for (from, to) in from.iter().zip(to.chunks_exact_mut(pixels)) {
                    let to: &mut [T; P] = (&mut to[run * P..][..P]).try_into().expect("P long");
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = T::rounded(*from);
                    }
                }
            }
        }
    }

    /// Lays out patches of any size.
    #[inline(always)]
    fn in_any_runs(self) {
        let Grid { width, patch, .. } = self.grid;
        let (across, pixels, images) = (width / patch, self.grid.pixels(), self.images);
        let lines = self.to.chunks_exact_mut(across * pixels);
        for (line, to) in lines.enumerate() {
            for (run, start) in self.grid.lines(self.line + line).enumerate() {
                let from = images[start..][..across * patch].chunks_exact(patch);
                for (from, to) in from.zip(to.chunks_exact_mut(pixels)) {
                    for (to, from) in to[run * patch..][..patch].iter_mut().zip(from) {
                        *to = T::rounded(*from);
                    }
                }
            }
        }
    }
}
