//! What ops that work row by row on the processor share.

/// Elements that one task works on: long enough to hide the hand-over, short enough to share among cores.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Rows of `columns` elements that one task works on; at least one.
pub(super) fn rows_per_task(columns: usize) -> usize {
    (ELEMENTS_PER_TASK / columns.max(1)).max(1)
}

/// to += factor · from.
pub(super) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// Σ a·b in eight interleaved sums, so that it vectorises; the order depends on the length alone.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_whole, a_rest) = a.as_chunks::<8>();
    let (b_whole, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
