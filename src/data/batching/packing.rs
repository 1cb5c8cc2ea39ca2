//! Several samples to a sequence: which go where.
//!
//! The longest first, each into the first sequence with room (first-fit decreasing, within 11/9 of the fewest sequences:
//! Johnson 1973). What a batch's samples become is a function of the batch alone: no remainder is carried from step to
//! step, so that any step can be made without the ones before it. A sample that finds no room is left out, and counted.

/// The place of a sample's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The sequence.
    pub row: usize,
    /// Its first token there.
    pub start: usize,
    /// Its number among the samples of the sequence.
    pub segment: usize,
}

/// A sample in a packed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its index among the batch's samples.
    pub sample: usize,
    /// Where its tokens are; nothing where there was no room.
    pub place: Option<Room>,
}

/// How full the sequences of some batches were.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackingStats {
    tokens: u64,
    used: u64,
    samples: u64,
    without_room: u64,
}

impl PackingStats {
    /// Takes in a batch's segments and the samples of it, some of them without room.
    pub fn add(&mut self, segments: &[i32], samples: usize, without_room: u32) {
        self.tokens += segments.len() as u64;
        self.used += segments.iter().filter(|segment| **segment >= 0).count() as u64;
        self.samples += samples as u64;
        self.without_room += u64::from(without_room);
    }
}

impl std::fmt::Display for PackingStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        write!(
            f,
            "{:.0} % of the packed sequences' tokens used, {:.1} % of the samples without room",
            share(self.used, self.tokens),
            share(self.without_room, self.samples)
        )
    }
}

/// The samples of a batch in the order in which their images are spliced: those with images in the order of their
/// places, then those with images and no place, then those without an image. A contrastive loss is of the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// All samples, each once.
    pub samples: Vec<Packed>,
}

impl Packing {
    /// A sequence for each sample, with an image or not, in their own order but that of images before text.
    pub fn apart(with_image: &[bool]) -> Packing {
        let mut order: Vec<usize> = (0..with_image.len()).collect();
        order.sort_by_key(|sample| !with_image[*sample]);
        let own = |(row, sample)| Packed {
            sample,
            place: Some(Room {
                row,
                start: 0,
                segment: 0,
            }),
        };
        Packing {
            samples: order.into_iter().enumerate().map(own).collect(),
        }
    }

    /// Samples of these lengths, with an image or not, in `rows` sequences of `tokens` tokens.
    pub fn new(lengths: &[usize], with_image: &[bool], rows: usize, tokens: usize) -> Packing {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&sample| (std::cmp::Reverse(lengths[sample]), sample));
        // Tokens and samples in each row so far.
        let mut filled = vec![(0, 0); rows];
        let mut samples: Vec<Packed> = order
            .into_iter()
            .map(|sample| {
                let length = lengths[sample];
                let row = filled.iter().position(|(used, _)| used + length <= tokens);
                let place = row.map(|row| {
                    let (start, segment) = filled[row];
                    filled[row] = (start + length, segment + 1);
                    Room {
                        row,
                        start,
                        segment,
                    }
                });
                Packed { sample, place }
            })
            .collect();
        samples.sort_by_key(|packed| match packed.place {
            Some(room) if with_image[packed.sample] => (0, room.row, room.segment),
            None if with_image[packed.sample] => (1, packed.sample, 0),
            Some(room) => (2, room.row, room.segment),
            None => (3, packed.sample, 0),
        });
        Packing { samples }
    }
}
