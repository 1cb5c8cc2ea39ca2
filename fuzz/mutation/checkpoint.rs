//! Checkpoints changed inside and sealed again: their own checksum holds, so that only sense can refuse them.

use safetensors::SafeTensors;
use serde_json::Value;

use crate::json::change_tree;
use crate::tensors::{change_safetensors, joined, parts};
use crate::{Choices, once_in};

/// The key of the metadata's one entry: the checksum, a space, and the position as JSON (src/train/checkpoint/file.rs).
const KEY: &str = "keel.position";

/// A checkpoint with changes to its position, its tensors or both, from a valid one.
pub fn checkpoint(choices: &mut Choices<'_>, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    if once_in(choices, 2) {
        change_safetensors(choices, &mut bytes);
    }
    let Some((mut header, data)) = parts(&bytes) else {
        return bytes;
    };
    let Some(entry) = header["__metadata__"][KEY].as_str() else {
        return bytes;
    };
    let (sum, text) = entry.split_once(' ').unwrap_or((entry, ""));
    let mut position: Value = serde_json::from_str(text).unwrap_or_default();
    change_tree(choices, &mut position, 3);
    header["__metadata__"][KEY] = format!("{sum} {position}").into();
    let bytes = joined(header.to_string().into_bytes(), data);
    if once_in(choices, 10) {
        return bytes;
    }
    seal_checkpoint(&bytes).unwrap_or(bytes)
}

/// The same checkpoint with the checksum of what it holds; nothing where it is no safetensors file with a position.
pub fn seal_checkpoint(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut header, data) = parts(bytes)?;
    let entry = header["__metadata__"][KEY].as_str()?;
    let (_, position) = entry.split_once(' ')?;
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let mut all = tensors.tensors();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut hasher = blake3::Hasher::new();
    hasher.update(position.as_bytes());
    for (name, tensor) in all {
        hasher.update(format!("\n{name} {:?}\n", tensor.shape()).as_bytes());
        hasher.update(tensor.data());
    }
    let sum = hasher.finalize().to_hex();
    header["__metadata__"][KEY] = format!("{sum} {position}").into();
    Some(joined(header.to_string().into_bytes(), data))
}
