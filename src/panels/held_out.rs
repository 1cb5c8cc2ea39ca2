//! Which combinations of shape, colour and digit are never trained on: for every shape and colour one digit, so that each shape,
//! each colour, each digit and each pair of them is trained on.

use std::sync::OnceLock;

use super::words::{COLOURS, DIGITS, SHAPES};
use keel_base::random::Stream;

/// Names the draw of the combinations. They are the same ones in every run.
const HELD_OUT_SEED: u64 = 0x6865_6c64;

/// The digit that a shape of a colour is never trained with. All digits are held out about equally often.
pub fn held_out_digit(shape: usize, colour: usize) -> usize {
    static TABLE: OnceLock<Vec<usize>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let pairs = SHAPES.len() * COLOURS.len();
        let mut digits: Vec<usize> = (0..pairs).map(|pair| pair % DIGITS.len()).collect();
        Stream::of_seed(HELD_OUT_SEED).shuffle(&mut digits);
        digits
    });
    table[shape * COLOURS.len() + colour]
}
