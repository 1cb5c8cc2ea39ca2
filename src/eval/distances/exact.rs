//! The exact Wasserstein-1 distance of two equally large clouds: the cheapest assignment of one to the other.

use super::squared_costs;

/// The Wasserstein-1 distance, with Euclidean costs, between the rows of `a` [N, `width`] and of `b` [N, `width`], all of
/// equal weight: the mean cost of the cheapest assignment. O(N³) at most.
///
/// # Panics
/// When the clouds are not equally large.
pub fn exact_wasserstein(a: &[f32], b: &[f32], width: usize) -> f64 {
    assert_eq!(a.len(), b.len(), "an assignment needs equally large clouds");
    let count = a.len() / width;
    let mut costs = squared_costs(a, b, width);
    costs.iter_mut().for_each(|cost| *cost = cost.sqrt());
    let columns = assign(&costs, count);
    let total: f64 = columns
        .iter()
        .enumerate()
        .map(|(row, column)| costs[row * count + column])
        .sum();
    total / count.max(1) as f64
}

/// The column of each row in a cheapest assignment under `costs` [n, n].
///
/// Shortest augmenting paths with dual variables (Jonker and Volgenant 1987): rows are assigned one after the other, each
/// along the cheapest alternating path to a free column.
fn assign(costs: &[f64], n: usize) -> Vec<usize> {
    // Index 0 of the columns stands for "no column yet"; real ones start at 1.
    let mut row_of = vec![0usize; n + 1];
    let mut row_price = vec![0.0; n + 1];
    let mut column_price = vec![0.0; n + 1];
    // The Hungarian method with potentials (Kuhn 1955), one row at a time: O(n³), and exact, which is why the clouds
    // are thinned before. Each turn finds the cheapest chain of reassignments that ends in a free column, a shortest
    // path over reduced costs.
    for row in 1..=n {
        row_of[0] = row;
        let mut here = 0;
        let mut least = vec![f64::INFINITY; n + 1];
        let mut came_from = vec![0usize; n + 1];
        let mut is_done = vec![false; n + 1];
        loop {
            is_done[here] = true;
            let from = row_of[here];
            let (mut step, mut next) = (f64::INFINITY, 0);
            for column in 1..=n {
                if is_done[column] {
                    continue;
                }
                let reduced =
                    costs[(from - 1) * n + column - 1] - row_price[from] - column_price[column];
                if reduced < least[column] {
                    least[column] = reduced;
                    came_from[column] = here;
                }
                if least[column] < step {
                    step = least[column];
                    next = column;
                }
            }
            // All prices move by the step at once, which keeps reduced costs non-negative and those of assigned pairs
            // zero: what the next search relies on.
            for column in 0..=n {
                if is_done[column] {
                    row_price[row_of[column]] += step;
                    column_price[column] -= step;
                } else {
                    least[column] -= step;
                }
            }
            here = next;
            if row_of[here] == 0 {
                break;
            }
        }
        // Back along the chain: every column takes the row of the one before it.
        while here != 0 {
            let before = came_from[here];
            row_of[here] = row_of[before];
            here = before;
        }
    }
    let mut column_of = vec![0; n];
    for (column, row) in row_of.iter().enumerate().skip(1) {
        column_of[row - 1] = column - 1;
    }
    column_of
}
