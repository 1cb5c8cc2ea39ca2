//! Which scores of a batch take part: those of its pairs, and of them those that are not masked.

use crate::tape::Value;
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Which scores of a batch take part in a contrastive loss; all of them by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContrastiveMask {
    /// i32 `[1]`, from 0 to N: how many rows, the first, are pairs. The others take no part.
    pub pairs: Option<Value>,
    /// i32 `[N]` of the images and i32 `[N]` of the texts: rows of one number have equal images, or equal texts, and the
    /// scores between them are neither positive nor negative. A row whose number is 0 is like no other, or not known to be.
    pub identities: Option<[Value; 2]>,
}

impl ContrastiveMask {
    /// The inputs of an op, in order.
    pub(super) fn values(self) -> impl Iterator<Item = Value> {
        self.pairs
            .into_iter()
            .chain(self.identities.into_iter().flatten())
    }

    pub(super) fn inputs(self) -> MaskInputs {
        MaskInputs {
            counts_pairs: self.pairs.is_some(),
            has_identities: self.identities.is_some(),
        }
    }
}

/// Which inputs of a mask an op has, behind its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaskInputs {
    pub counts_pairs: bool,
    pub has_identities: bool,
}

impl MaskInputs {
    /// Checks `inputs`, those behind the op's own, for `n` rows.
    pub fn infer(self, op: &'static str, inputs: &[TensorType], n: usize) -> Result<()> {
        let mut wanted = Vec::new();
        if self.counts_pairs {
            wanted.push(("pairs", TensorType::i32([1])));
        }
        if self.has_identities {
            let of_rows = TensorType::i32([n]);
            wanted.extend([("image identities", of_rows), ("text identities", of_rows)]);
        }
        if inputs.len() != wanted.len() {
            let want = format!("{} values behind those of the loss", wanted.len());
            return Err(Error::shape(op, "mask", want, inputs.len()));
        }
        for ((name, want), found) in wanted.into_iter().zip(inputs) {
            if *found != want {
                return Err(Error::shape(op, name, want, found));
            }
        }
        Ok(())
    }

    /// The same for an op with so many inputs of its own before them.
    pub fn behind(self, own: usize) -> MaskPlaces {
        let first = own + usize::from(self.counts_pairs);
        MaskPlaces {
            pairs: self.counts_pairs.then_some(own),
            identities: self.has_identities.then_some([first, first + 1]),
        }
    }
}

/// The indices of a mask's inputs among all of an op's.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaskPlaces {
    pub pairs: Option<usize>,
    /// Of the images, and of the texts.
    pub identities: Option<[usize; 2]>,
}

impl MaskPlaces {
    /// How many of `n` rows are pairs: all, or as many as the input of their number says.
    pub fn pairs<'a>(self, n: usize, input: impl Fn(usize) -> &'a [i32]) -> usize {
        self.pairs
            .map_or(n, |index| input(index)[0].clamp(0, n as i32) as usize)
    }

    /// Which rows are equal, where that is known.
    pub fn identities<'a>(self, input: impl Fn(usize) -> &'a [i32]) -> Option<Identities<'a>> {
        self.identities.map(|[images, texts]| Identities {
            images: input(images),
            texts: input(texts),
        })
    }
}

/// Which rows have equal images, and which have equal texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identities<'a> {
    images: &'a [i32],
    texts: &'a [i32],
}

impl Identities<'_> {
    /// Whether the score of row `i` of one side with row `j` of the other is left out. It makes no difference which side is
    /// which.
    pub fn masks(&self, i: usize, j: usize) -> bool {
        let are_equal = |rows: &[i32]| rows[i] != 0 && rows[i] == rows[j];
        i != j && (are_equal(self.images) || are_equal(self.texts))
    }

    /// Sets the masked scores of a tile of `columns` columns, whose first score is of row and column `first`, to −∞.
    pub fn apply(&self, tile: &mut [f32], columns: usize, first: [usize; 2]) {
        for (row, scores) in tile.chunks_mut(columns).enumerate() {
            let row = first[0] + row;
            // Most rows of most batches are like no other, and need no comparisons.
            if self.images[row] == 0 && self.texts[row] == 0 {
                continue;
            }
            for (column, score) in scores.iter_mut().enumerate() {
                if self.masks(row, first[1] + column) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}
