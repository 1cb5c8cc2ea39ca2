//! Where the pixels of a patch lie.

use crate::tensor::Shape;

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

    /// Lays patches `first..` of all images out as rows of `to`, as many as fit.
    pub fn gather(self, images: &[f32], first: usize, to: &mut [f32]) {
        for (row, to) in to.chunks_exact_mut(self.pixels()).enumerate() {
            for (start, to) in self.runs(first + row).zip(to.chunks_exact_mut(self.patch)) {
                to.copy_from_slice(&images[start..][..self.patch]);
            }
        }
    }
}
