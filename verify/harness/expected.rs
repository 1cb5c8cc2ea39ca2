//! What cases should give, computed beforehand: so that a machine with a GPU, which may be had for minutes, compares and does
//! not compute. `KEEL_EXPECTED` says what a process does: `write:FILE` computes every case's values with the reference and
//! adds them to the file, and runs nothing else; `read:FILE` runs every case on the GPU alone and holds it against the file.
//!
//! A value is kept as a whole number of quanta, an eighth of what its tensor may be off, and compressed. By that rounding a
//! comparison may be wrong by a sixteenth, which is added to what is allowed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Budget;

/// The file's first bytes.
const MAGIC: &[u8; 8] = b"keelexp1";

/// Quanta in what a tensor may be off.
const QUANTA: f64 = 8.0;

/// What this process does with the values that cases should give.
pub enum Expected {
    /// Computes them, and runs every executor there is: the usual.
    Computed,
    /// Computes them, and adds them to a file.
    Written(Mutex<File>),
    /// Reads them, and runs the GPU alone.
    Read(HashMap<Key, Vec<u8>>),
}

/// A hash of all that a case computes from.
pub type Key = [u8; 16];

/// Tensors by name, with what each may be off.
pub type Values = BTreeMap<String, (Vec<f64>, Budget)>;

/// What this process does.
pub fn expected() -> &'static Expected {
    static EXPECTED: OnceLock<Expected> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let Some(wish) = std::env::var_os("KEEL_EXPECTED") else {
            return Expected::Computed;
        };
        let wish = wish.to_string_lossy().into_owned();
        match wish.split_once(':') {
            Some(("write", path)) => Expected::Written(Mutex::new(begin(Path::new(path)))),
            Some(("read", path)) => {
                Expected::Read(read(Path::new(path)).unwrap_or_else(|e| panic!("{e}")))
            }
            _ => panic!("KEEL_EXPECTED must be write:FILE or read:FILE, but is {wish:?}"),
        }
    })
}

/// The key of what is computed from `parts`.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut hash = blake3::Hasher::new();
    for part in parts {
        // With its length: two texts must not hash as their joint one.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    key
}

fn begin(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.unwrap_or_else(|e| panic!("{} cannot be written: {e}", path.display()));
    if file.metadata().expect("it is open").len() == 0 {
        file.write_all(MAGIC).expect("the folder has room");
    }
    file
}

/// Adds a case's values.
pub fn write(file: &Mutex<File>, key: Key, values: &Values) {
    let packed = pack(values);
    let mut record = key.to_vec();
    record.extend((packed.len() as u32).to_le_bytes());
    record.extend(packed);
    // One call, so that processes that add at the same time do not mix.
    file.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write_all(&record)
        .expect("the folder has room");
}

/// The records of a file, each still packed.
fn read(path: &Path) -> Result<HashMap<Key, Vec<u8>>, String> {
    let name = path.display();
    let bytes = std::fs::read(path).map_err(|e| format!("{name} cannot be read: {e}"))?;
    let mut rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| format!("{name} holds no expected values"))?;
    let mut records = HashMap::new();
    while !rest.is_empty() {
        let cut = || format!("{name} ends in the middle of a record; write it anew");
        let (key, after) = rest.split_first_chunk::<16>().ok_or_else(cut)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        let packed = after.get(..length).ok_or_else(cut)?;
        records.insert(*key, packed.to_vec());
        rest = &after[length..];
    }
    Ok(records)
}

/// A case's values, or why there are none.
pub fn find(records: &HashMap<Key, Vec<u8>>, key: Key) -> Result<Values, String> {
    let packed = records.get(&key).ok_or(
        "the expected values lack this case: they are of another version, so write them anew",
    )?;
    unpack(packed).ok_or_else(|| "the expected values are damaged; write them anew".to_owned())
}

fn pack(values: &Values) -> Vec<u8> {
    let mut plain = Vec::new();
    for (name, (values, budget)) in values {
        plain.extend((name.len() as u32).to_le_bytes());
        plain.extend(name.as_bytes());
        plain.extend((values.len() as u32).to_le_bytes());
        plain.extend(budget.largest_error.to_le_bytes());
        plain.extend(budget.rounding.to_le_bytes());
        let quantum = quantum(budget);
        for value in values {
            let count = (value / quantum).round() as i64;
            // Small numbers of either sign in few bytes: zigzag, then seven bits a byte.
            let mut bits = ((count << 1) ^ (count >> 63)) as u64;
            while bits >= 0x80 {
                plain.push(bits as u8 | 0x80);
                bits >>= 7;
            }
            plain.push(bits as u8);
        }
    }
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder
        .write_all(&plain)
        .and_then(|()| encoder.finish())
        .expect("memory takes everything")
}

/// Whole numbers, which must be equal, are kept as they are.
fn quantum(budget: &Budget) -> f64 {
    if budget.largest_error == 0.0 {
        1.0
    } else {
        budget.largest_error / QUANTA
    }
}

fn unpack(packed: &[u8]) -> Option<Values> {
    let mut plain = Vec::new();
    flate2::read::DeflateDecoder::new(packed)
        .read_to_end(&mut plain)
        .ok()?;
    let mut rest = &plain[..];
    let mut take = |bytes: usize| {
        let (taken, after) = rest.split_at_checked(bytes)?;
        rest = after;
        Some(taken)
    };
    let mut values = Values::new();
    while let Some(length) = take(4) {
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let name = String::from_utf8(take(length)?.to_vec()).ok()?;
        let count = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
        let mut budget = Budget {
            largest_error: f64::from_le_bytes(take(8)?.try_into().ok()?),
            rounding: f64::from_le_bytes(take(8)?.try_into().ok()?),
        };
        let quantum = quantum(&budget);
        let mut tensor = Vec::with_capacity(count);
        for _ in 0..count {
            let (mut bits, mut shift) = (0u64, 0);
            loop {
                let byte = take(1)?[0];
                bits |= u64::from(byte & 0x7f).checked_shl(shift)?;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            let number = (bits >> 1) as i64 ^ -((bits & 1) as i64);
            tensor.push(number as f64 * quantum);
        }
        if budget.largest_error > 0.0 {
            budget.largest_error += quantum / 2.0;
        }
        values.insert(name, (tensor, budget));
    }
    Some(values)
}

/// Adds a line to the file that `KEEL_ROWS` names, if it names one: whatever ends this process later, it is there.
pub fn row(row: &serde_json::Value) {
    let Some(path) = std::env::var_os("KEEL_ROWS") else {
        return;
    };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let mut file =
        file.unwrap_or_else(|e| panic!("KEEL_ROWS: {} cannot be written: {e}", path.display()));
    file.write_all(format!("{row}\n").as_bytes())
        .expect("the folder has room");
}

#[test]
fn packed_values_come_back_within_a_sixteenth_of_what_they_may_be_off() {
    let mut random = super::Random::new(5);
    let draw = |scale: f64, random: &mut super::Random| -> Vec<f64> {
        (0..1000).map(|_| scale * random.normal()).collect()
    };
    let budget = |largest_error| Budget {
        largest_error,
        rounding: largest_error / 4.0,
    };
    let values: Values = [
        ("f32", draw(1.0, &mut random), 5e-7),
        ("bf16", draw(1e3, &mut random), 8.0),
        ("zero", vec![0.0; 10], 1e-37),
        ("whole", vec![0.0, -1.0, 70_000.0, -5.0], 0.0),
    ]
    .into_iter()
    .map(|(name, values, error)| (name.to_owned(), (values, budget(error))))
    .collect();
    let packed = pack(&values);
    let unpacked = unpack(&packed).expect("it was packed here");
    assert_eq!(
        values.keys().collect::<Vec<_>>(),
        unpacked.keys().collect::<Vec<_>>()
    );
    for (name, (want, before)) in &values {
        let (got, after) = &unpacked[name];
        let allowed = before.largest_error / 16.0;
        let is_near = |(want, got): (&f64, &f64)| (want - got).abs() <= allowed * (1.0 + 1e-9);
        assert!(want.iter().zip(got).all(is_near), "{name}");
        assert!(
            (after.largest_error - before.largest_error - allowed).abs()
                < 1e-12 * allowed.max(1e-30)
        );
    }
    for cut in [1, packed.len() / 2, packed.len() - 1] {
        let found = unpack(&packed[..cut]);
        assert!(found.is_none_or(|found| found.len() < values.len()));
    }
}
