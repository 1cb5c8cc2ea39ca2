//! tar archives as WebDataset has them, with the headers that say more about the entry after them.

use crate::{Choices, below, change_order, number, once_in, one_of};

/// An archive and, where nothing in it was changed, the regular files that it holds.
#[derive(Debug)]
pub struct ArchiveFile {
    /// The archive.
    pub bytes: Vec<u8>,
    /// Names and contents in order; nothing where the archive was changed.
    pub files: Option<Vec<(String, Vec<u8>)>>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    /// The twelve bytes of the size.
    size: [u8; 12],
    /// Added to the checksum.
    off_by: i64,
}

const BLOCK: usize = 512;

impl Entry {
    fn new(name: &str, kind: u8, content: Vec<u8>) -> Entry {
        let mut size = [0; 12];
        size[..11].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        Entry {
            name: name.as_bytes().to_vec(),
            kind,
            content,
            size,
            off_by: 0,
        }
    }

    fn write(&self, archive: &mut Vec<u8>) {
        let mut header = [0u8; BLOCK];
        let length = self.name.len().min(100);
        header[..length].copy_from_slice(&self.name[..length]);
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(&self.size);
        header[148..156].fill(b' ');
        header[156] = self.kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: i64 = header.iter().map(|byte| i64::from(*byte)).sum();
        let sum = format!("{:06o}\0 ", (sum + self.off_by) & 0o777_777);
        header[148..156].copy_from_slice(sum.as_bytes());
        archive.extend(header);
        archive.extend(&self.content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
}

/// A record of a PAX header: its own length in decimals, then the key and the value.
fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    format!("{length}{rest}").into_bytes()
}

/// Keys and endings of samples.
const KEYS: [&str; 6] = ["a", "b/c", "sample.000001", "日本", "x y", "00000"];
const ENDINGS: [&str; 7] = ["jpg", "png", "txt", "json", "cls", "seg.png", "__key__"];

/// Names and contents of regular files.
type Files = Vec<(String, Vec<u8>)>;

fn valid(choices: &mut Choices<'_>) -> (Vec<Entry>, Files) {
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for _ in 0..=below(choices, 6) {
        let mut name = format!("{}.{}", one_of(choices, &KEYS), one_of(choices, &ENDINGS));
        let content = vec![below(choices, 256) as u8; below(choices, 700)];
        let header = match below(choices, 6) {
            0 => {
                name = format!("{}/{name}", "long".repeat(30));
                entries.push(Entry::new(
                    "././@LongLink",
                    b'L',
                    [name.as_bytes(), b"\0"].concat(),
                ));
                "cut"
            }
            1 => {
                let records = [pax_record("path", &name), pax_record("mtime", "1.5")].concat();
                entries.push(Entry::new("PaxHeaders/x", b'x', records));
                "another"
            }
            2 => {
                let size = pax_record("size", &content.len().to_string());
                entries.push(Entry::new("PaxHeaders/x", b'x', size));
                name.as_str()
            }
            3 => {
                entries.push(Entry::new("folder/", b'5', Vec::new()));
                name.as_str()
            }
            4 => {
                entries.push(Entry::new("g", b'g', pax_record("comment", "hello")));
                name.as_str()
            }
            _ => name.as_str(),
        };
        entries.push(Entry::new(header, b'0', content.clone()));
        files.push((name, content));
    }
    (entries, files)
}

/// Kinds of entries, known and not.
const KINDS: [u8; 15] = *b"0\x0012345678LKxgS";
/// Names that are not a path of a sample.
const NAMES: [&[u8]; 8] = [
    b"../up.txt",
    b"/etc/passwd",
    b"a/../../b.txt",
    b"",
    b".hidden",
    b"no-ending",
    b"back\\slash.txt",
    b"\xff\xfe.txt",
];

fn change(choices: &mut Choices<'_>, entries: &mut Vec<Entry>) {
    if once_in(choices, 5) || entries.is_empty() {
        change_order(choices, entries);
        return;
    }
    let index = below(choices, entries.len());
    let entry = &mut entries[index];
    match below(choices, 8) {
        0 => {
            let size = number(choices, entry.content.len() as u64, 33);
            entry.size[..11].copy_from_slice(format!("{size:011o}").as_bytes());
        }
        // Sizes of eight gibibytes and more are binary, after a first bit.
        1 => {
            let size = number(choices, entry.content.len() as u64, 64);
            entry.size = [0; 12];
            entry.size[0] = one_of(choices, &[0x80, 0xff, 0x81]);
            entry.size[4..].copy_from_slice(&size.to_be_bytes());
        }
        2 => entry.size[below(choices, 12)] = choices.arbitrary().unwrap_or(0),
        3 => entry.kind = one_of(choices, &KINDS),
        4 => entry.name = one_of(choices, &NAMES).to_vec(),
        5 => entry.off_by = number(choices, 0, 18) as i64,
        // Of a PAX header this is a record, of a long name the name.
        6 => crate::change_bytes(choices, &mut entry.content),
        _ => {
            let keys = ["path", "size", "linkpath", "GNU.sparse.size", "hdrcharset"];
            let value = number(choices, 0, 64).to_string();
            let mut record = pax_record(one_of(choices, &keys), &value);
            crate::change_bytes(choices, &mut record);
            *entry = Entry::new("PaxHeaders/x", b'x', record);
        }
    }
}

/// An archive with up to four changes inside, and sometimes one at its end.
pub fn archive(choices: &mut Choices<'_>) -> ArchiveFile {
    let (mut entries, files) = valid(choices);
    let changes = below(choices, 5);
    for _ in 0..changes {
        change(choices, &mut entries);
    }
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    let end = below(choices, 10);
    match end {
        0 => bytes.extend([0; BLOCK]),
        1 => {}
        2 => bytes.truncate(below(choices, bytes.len() + 1)),
        3 => {
            bytes.extend([0; 2 * BLOCK]);
            bytes.push(1);
        }
        // As tar pads.
        _ => bytes.resize((bytes.len() + 2 * BLOCK).next_multiple_of(20 * BLOCK), 0),
    }
    ArchiveFile {
        bytes,
        files: (changes == 0 && end > 3).then_some(files),
    }
}
