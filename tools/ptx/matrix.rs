//! Matrix instructions of a warp. PTX ISA, "Warp Level Matrix Instructions: ldmatrix, mma".

/// One register of every lane.
pub type Lanes = [u32; 32];

/// Where a lane's two elements of an 8 × 8 matrix of 16-bit elements lie: row and column of the first, the second's beside it,
/// or below it for `.trans`.
pub fn spread(rows: &[[u8; 16]; 8], is_transposed: bool) -> Lanes {
    let element = |row: usize, column: usize| {
        let at = 2 * column;
        u32::from(u16::from_le_bytes([rows[row][at], rows[row][at + 1]]))
    };
    std::array::from_fn(|lane| {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        if is_transposed {
            element(pair, group) | element(pair + 1, group) << 16
        } else {
            element(group, pair) | element(group, pair + 1) << 16
        }
    })
}

/// The rows of an 8 × 8 matrix whose elements lanes hold as [`spread`] gives them.
pub fn gather(lanes: &Lanes, is_transposed: bool) -> [[u8; 16]; 8] {
    let mut rows = [[0; 16]; 8];
    for (lane, pair) in lanes.iter().enumerate() {
        for (half, bytes) in pair.to_le_bytes().chunks(2).enumerate() {
            let (group, place) = (lane / 4, lane % 4 * 2 + half);
            let (row, column) = if is_transposed {
                (place, group)
            } else {
                (group, place)
            };
            rows[row][2 * column..][..2].copy_from_slice(bytes);
        }
    }
    rows
}

/// Where a register of a lane's accumulators of `wgmma` stands within its warp's 16 rows: row and column.
pub fn accumulator(lane: usize, register: usize) -> (usize, usize) {
    let row = lane / 4 + register % 4 / 2 * 8;
    (row, register / 4 * 8 + lane % 4 * 2 + register % 2)
}

/// The 16 × 16 elements of A that a warp holds in four registers.
pub fn fragment(registers: [&Lanes; 4]) -> [[f32; 16]; 16] {
    let mut left = [[0f32; 16]; 16];
    for (register, lanes) in registers.iter().enumerate() {
        for (lane, pair) in lanes.iter().enumerate() {
            let (row, column) = (lane / 4 + register % 2 * 8, lane % 4 * 2 + register / 2 * 8);
            left[row][column] = low(*pair);
            left[row][column + 1] = high(*pair);
        }
    }
    left
}

fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

/// `mma.m16n8k16` of bf16 with f32 sums: d = a·b + c. The ISA leaves the order of the sum and its intermediate rounding open;
/// here k runs upwards from c, each step rounded to nearest, as in the emulator.
pub fn multiply(a: &[Lanes; 4], b: &[Lanes; 2], c: &[Lanes; 4]) -> [Lanes; 4] {
    let mut left = [[0f32; 16]; 16];
    let mut right = [[0f32; 8]; 16];
    let mut sums = [[0f32; 8]; 16];
    for lane in 0..32 {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        for (register, lanes) in a.iter().enumerate() {
            let (row, column) = (group + register % 2 * 8, pair + register / 2 * 8);
            left[row][column] = low(lanes[lane]);
            left[row][column + 1] = high(lanes[lane]);
        }
        for (register, lanes) in b.iter().enumerate() {
            right[pair + register * 8][group] = low(lanes[lane]);
            right[pair + register * 8 + 1][group] = high(lanes[lane]);
        }
        for (register, lanes) in c.iter().enumerate() {
            sums[group + register / 2 * 8][pair + register % 2] = f32::from_bits(lanes[lane]);
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for (factor, right) in left.iter().zip(&right) {
            for (sum, other) in sums.iter_mut().zip(right) {
                *sum += factor * other;
            }
        }
    }
    std::array::from_fn(|register| {
        std::array::from_fn(|lane| {
            let (group, pair) = (lane / 4, lane % 4 * 2);
            sums[group + register / 2 * 8][pair + register % 2].to_bits()
        })
    })
}
