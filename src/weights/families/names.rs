//! How a family's table names the tensors of each parameter.

use keel_engine::ops::Heads;

/// A row of a table: Keel's name without module and `.weight`/`.bias`, then the ways that files name it. Several names of
/// one way are stacked by rows. `{l}` is the layer.
pub(crate) type Names = (&'static str, &'static [&'static [&'static str]]);

/// Rows of each of `count` tensors that are stacked to one of `dims`.
pub(crate) fn rows_of(count: usize, dims: &[usize], heads: Heads) -> Vec<usize> {
    match count {
        1 => vec![dims[0]],
        3 => [heads.query, heads.key_value, heads.key_value]
            .iter()
            .map(|heads_of| heads_of * heads.dim)
            .collect(),
        count => vec![dims[0] / count; count],
    }
}

/// `vision.blocks.3.norm1.weight` → (`blocks.{l}.norm1`, `3`, `.weight`). The ending is empty where a row names the
/// tensor in full.
pub(crate) fn row(parameter: &str) -> (String, String, &'static str) {
    let path = parameter
        .split_once('.')
        .map_or(parameter, |(_, path)| path);
    let (path, layer) = match path.strip_prefix("blocks.").and_then(|p| p.split_once('.')) {
        Some((layer, rest)) => (format!("blocks.{{l}}.{rest}"), layer.to_owned()),
        None => (path.to_owned(), String::new()),
    };
    for ending in [".weight", ".bias"] {
        if let Some(stem) = path.strip_suffix(ending) {
            return (stem.to_owned(), layer, ending);
        }
    }
    (path, layer, "")
}
