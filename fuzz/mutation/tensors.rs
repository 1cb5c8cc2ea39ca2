//! Folders of weights: config.json, preprocessor_config.json and one safetensors file, changed inside.

use serde_json::Value;

use crate::json::{change_tree, text_of};
use crate::{Choices, below, change_bytes, number, once_in, one_of};

macro_rules! goldens {
    ($($name:literal),* $(,)?) => {
        [$((
            include_bytes!(concat!("../../verify/goldens/hub/", $name, "/config.json")).as_slice(),
            include_bytes!(concat!("../../verify/goldens/hub/", $name, "/model.safetensors")).as_slice(),
        )),*]
    };
}

/// Small folders in the form of published ones (tools/golden_transformers.py).
const VALID: [(&[u8], &[u8]); 7] = goldens![
    "aimv2",
    "clip",
    "dinov2",
    "internvit",
    "internvl",
    "qwen2",
    "siglip",
];

/// A processor's settings, as most towers have them.
const PROCESSOR: &[u8] =
    br#"{"do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3,
"do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_center_crop": false}"#;

/// The files of a folder.
#[derive(Debug)]
pub struct WeightsFolder {
    /// config.json.
    pub config: Vec<u8>,
    /// preprocessor_config.json.
    pub processor: Vec<u8>,
    /// model.safetensors.
    pub tensors: Vec<u8>,
    /// Whether nothing was changed.
    pub is_valid: bool,
}

/// The header of a safetensors file, and what lies after it.
pub(crate) fn parts(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (header, data) = rest.split_at_checked(length)?;
    Some((serde_json::from_slice(header).ok()?, data))
}

/// A safetensors file of a header and what lies after it.
pub(crate) fn joined(mut header: Vec<u8>, data: &[u8]) -> Vec<u8> {
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), &header[..], data].concat()
}

/// Changes the entry of one tensor: its type, its shape, where it lies, and, if asked for, its length with its shape.
fn change_tensor(choices: &mut Choices<'_>, header: &mut Value, data: &mut [u8]) {
    let Value::Object(tensors) = header else {
        return;
    };
    let names: Vec<String> = tensors.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let entry = &mut tensors[&names[below(choices, names.len())]];
    let index = below(choices, 2);
    match below(choices, 5) {
        0 => {
            let types = [
                "F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "f32",
            ];
            entry["dtype"] = (one_of(choices, &types)).into();
        }
        1 => {
            let was = entry["shape"][index].as_u64().unwrap_or(1);
            if let Some(size) = entry["shape"].get_mut(index) {
                *size = number(choices, was, 64).into();
            }
        }
        2 => {
            let was = entry["data_offsets"][index].as_u64().unwrap_or(0);
            if let Some(offset) = entry["data_offsets"].get_mut(index) {
                *offset = number(choices, was, 64).into();
            }
        }
        // A shape whose sizes multiply to the same.
        3 => {
            if let Some(shape) = entry["shape"].as_array_mut() {
                shape.insert(0, 1.into());
            }
        }
        // Values that no model has.
        _ => {
            if !data.is_empty() {
                let at = below(choices, data.len() / 4) * 4;
                let value = one_of(choices, &[f32::NAN, f32::INFINITY, f32::MAX, 1e-45]);
                data[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Changes a safetensors file inside; the length of its header is set right, but for one time in twelve. Returns whether
/// anything is changed.
pub(crate) fn change_safetensors(choices: &mut Choices<'_>, bytes: &mut Vec<u8>) -> bool {
    let Some((mut header, data)) = parts(bytes) else {
        return false;
    };
    let mut data = data.to_vec();
    let mut changes = 0;
    for _ in 0..below(choices, 3) {
        change_tensor(choices, &mut header, &mut data);
        changes += 1;
    }
    if once_in(choices, 3) {
        changes += change_tree(choices, &mut header, 2);
    }
    if once_in(choices, 8) {
        change_bytes(choices, &mut data);
        changes += 1;
    }
    if changes == 0 {
        return false;
    }
    let text = if once_in(choices, 4) {
        text_of(choices, &header).0
    } else {
        header.to_string().into_bytes()
    };
    *bytes = joined(text, &data);
    if once_in(choices, 12) {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        bytes[..8].copy_from_slice(&number(choices, length, 64).to_le_bytes());
    }
    true
}

/// One of the valid folders with changes in any of its files.
pub fn weights(choices: &mut Choices<'_>) -> WeightsFolder {
    let (config, tensors) = one_of(choices, &VALID);
    let mut tensors = tensors.to_vec();
    let mut changed = |valid: &[u8]| {
        let mut tree = serde_json::from_slice(valid).expect("the goldens are JSON");
        if !once_in(choices, 2) {
            return (valid.to_vec(), false);
        }
        let changes = change_tree(choices, &mut tree, 2);
        let (text, is_changed) = text_of(choices, &tree);
        (text, changes > 0 || is_changed)
    };
    let (config, is_other_config) = changed(config);
    let (processor, is_other_processor) = changed(PROCESSOR);
    let is_other_file = once_in(choices, 2) && change_safetensors(choices, &mut tensors);
    WeightsFolder {
        config,
        processor,
        tensors,
        is_valid: !is_other_config && !is_other_processor && !is_other_file,
    }
}
