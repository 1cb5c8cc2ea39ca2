//! The loss of a JPEG file without the file: colours, halved chroma, cosine transform and rounding by the standard's
//! tables (ITU-T T.81, annex K, scaled by quality as libjpeg does). What follows in a file is lossless.

/// Quantisation of luma at quality 50, row by row (table K.1).
const LUMA: [u16; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
];

/// Quantisation of chroma at quality 50 (table K.2).
const CHROMA: [u16; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
];

/// Does to a normalised image [3, `side`, `side`] what saving it at `quality`, 1 to 100, with halved chroma does.
pub(super) fn lose(image: &mut [f32], side: usize, quality: u32) {
    // Files hold whole squares of 16 pixels; the edge goes on outside the image.
    let full = side.next_multiple_of(16);
    let level = |value: f32| ((value + 1.0) * 127.5).round().clamp(0.0, 255.0);
    let mut converted = [
        vec![0.0; full * full],
        vec![0.0; full * full],
        vec![0.0; full * full],
    ];
    for index in 0..full * full {
        let (x, y) = ((index % full).min(side - 1), (index / full).min(side - 1));
        let [r, g, b] = [0, 1, 2].map(|channel| level(image[(channel * side + y) * side + x]));
        converted[0][index] = 0.299 * r + 0.587 * g + 0.114 * b;
        converted[1][index] = -0.168_735_9 * r - 0.331_264_1 * g + 0.5 * b + 128.0;
        converted[2][index] = 0.5 * r - 0.418_687_6 * g - 0.081_312_4 * b + 128.0;
    }
    let [luma, blue, red] = converted;
    let luma = coded(&luma, full, &scaled(&LUMA, quality));
    let chroma = |plane: &[f32]| {
        let small = coded(
            &halved(plane, full, side),
            full / 2,
            &scaled(&CHROMA, quality),
        );
        doubled(&small, full / 2, side)
    };
    let (blue, red) = (chroma(&blue), chroma(&red));
    for index in 0..side * side {
        let y = luma[index / side * full + index % side];
        let (cb, cr) = (blue[index] - 128.0, red[index] - 128.0);
        let colours = [
            y + 1.402 * cr,
            y - 0.344_136_3 * cb - 0.714_136_3 * cr,
            y + 1.772 * cb,
        ];
        for (channel, colour) in colours.into_iter().enumerate() {
            let colour = colour.round().clamp(0.0, 255.0);
            image[channel * side * side + index] = colour / 127.5 - 1.0;
        }
    }
}

fn scaled(table: &[u16; 64], quality: u32) -> [f32; 64] {
    let scale = match quality {
        quality if quality < 50 => 5000 / quality.max(1),
        quality => 200 - 2 * quality.min(100),
    };
    table.map(|step| ((u32::from(step) * scale + 50) / 100).clamp(1, 255) as f32)
}

/// Means of 2 × 2 neighbours of a plane [`full`, `full`] of even side. Below the image's own `side` rows libjpeg goes on
/// with the last row of means, not of pixels.
fn halved(plane: &[f32], full: usize, side: usize) -> Vec<f32> {
    let (half, last) = (full / 2, side.div_ceil(2) - 1);
    (0..half * half)
        .map(|index| {
            let at = 2 * (index / half).min(last) * full + 2 * (index % half);
            (plane[at] + plane[at + 1] + plane[at + full] + plane[at + full + 1]) / 4.0
        })
        .collect()
}

/// A plane with rows of `stride`, twice as wide and high, of which [`side`, `side`] are kept: three parts of the nearest
/// sample and one of the next along each axis, as libjpeg does.
fn doubled(plane: &[f32], stride: usize, side: usize) -> Vec<f32> {
    let last = side.div_ceil(2) - 1;
    let neighbours = |at: usize| {
        let near = at / 2;
        let next = match at % 2 {
            0 => near.saturating_sub(1),
            _ => (near + 1).min(last),
        };
        (near, next)
    };
    (0..side * side)
        .map(|index| {
            let ((x, next_x), (y, next_y)) = (neighbours(index % side), neighbours(index / side));
            let row = |y: usize| 0.75 * plane[y * stride + x] + 0.25 * plane[y * stride + next_x];
            0.75 * row(y) + 0.25 * row(next_y)
        })
        .collect()
}

/// A plane whose side is a multiple of 8 after its 8 × 8 blocks were transformed, rounded to multiples of `steps`, and transformed back.
fn coded(plane: &[f32], side: usize, steps: &[f32; 64]) -> Vec<f32> {
    let mut out = vec![0.0; side * side];
    for top in (0..side).step_by(8) {
        for left in (0..side).step_by(8) {
            let mut block = [0.0f32; 64];
            for (index, value) in block.iter_mut().enumerate() {
                let at = (top + index / 8) * side + left + index % 8;
                *value = plane[at].round() - 128.0;
            }
            let mut found = cosine(&block, false);
            for (value, step) in found.iter_mut().zip(steps) {
                *value = (*value / step).round() * step;
            }
            let back = cosine(&found, true);
            for (index, value) in back.iter().enumerate() {
                let at = (top + index / 8) * side + left + index % 8;
                out[at] = (value + 128.0).round().clamp(0.0, 255.0);
            }
        }
    }
    out
}

/// The two-dimensional cosine transform of an 8 × 8 block (T.81, A.3.3), or its inverse.
fn cosine(block: &[f32; 64], inverse: bool) -> [f32; 64] {
    let basis = |frequency: usize, place: usize| {
        let scale: f32 = if frequency == 0 { 0.125f32.sqrt() } else { 0.5 };
        let phase = (2 * place + 1) as f32 * frequency as f32 * std::f32::consts::PI / 16.0;
        scale * phase.cos()
    };
    let factor = |to: usize, from: usize| {
        if inverse {
            basis(from, to)
        } else {
            basis(to, from)
        }
    };
    let mut rows = [0.0; 64];
    for y in 0..8 {
        for u in 0..8 {
            rows[y * 8 + u] = (0..8).map(|x| factor(u, x) * block[y * 8 + x]).sum();
        }
    }
    let mut out = [0.0; 64];
    for v in 0..8 {
        for u in 0..8 {
            out[v * 8 + u] = (0..8).map(|y| factor(v, y) * rows[y * 8 + u]).sum();
        }
    }
    out
}
