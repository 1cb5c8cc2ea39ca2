//! Messages of Thrift's compact protocol, as Parquet has them in footers and page headers, as trees that can be changed
//! and written again.

use crate::{Choices, below, change_bytes, change_order, number, once_in};

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Thrift {
    /// 1 or 2: the type is the value. In a list, a byte.
    Bool(bool),
    Byte(u8),
    /// Of 16, 32 or 64 bits, by its type: 4, 5 or 6.
    Int(u8, i64),
    Double([u8; 8]),
    Binary(Vec<u8>),
    /// The type of the items, and how many more are claimed than there are.
    List(u8, Vec<Thrift>, u64),
    Struct(Vec<(i16, Thrift)>),
}

/// Reads from the front of some bytes.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken.to_vec())
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let coded = self.varint()?;
        Some((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    fn value(&mut self, kind: u8) -> Option<Thrift> {
        Some(match kind {
            1 | 2 => Thrift::Bool(kind == 1),
            3 => Thrift::Byte(self.byte()?),
            4..=6 => Thrift::Int(kind, self.zigzag()?),
            7 => Thrift::Double(self.take(8)?.try_into().ok()?),
            8 => {
                let length = self.varint()? as usize;
                Thrift::Binary(self.take(length)?)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                let items = (0..count).map(|_| self.item(head & 15));
                Thrift::List(head & 15, items.collect::<Option<_>>()?, 0)
            }
            12 => self.fields()?,
            _ => return None,
        })
    }

    fn item(&mut self, kind: u8) -> Option<Thrift> {
        match kind {
            1 | 2 => Some(Thrift::Bool(self.byte()? == 1)),
            _ => self.value(kind),
        }
    }

    fn fields(&mut self) -> Option<Thrift> {
        let (mut fields, mut last) = (Vec::new(), 0i16);
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(Thrift::Struct(fields));
            }
            last = match head >> 4 {
                0 => self.zigzag()? as i16,
                step => last + i16::from(step),
            };
            fields.push((last, self.value(head & 15)?));
        }
    }
}

fn write_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn write_zigzag(out: &mut Vec<u8>, number: i64) {
    write_varint(out, (number << 1 ^ number >> 63) as u64);
}

impl Thrift {
    /// The message at the front of `bytes`, and how many bytes it takes.
    pub fn read(bytes: &[u8]) -> Option<(Thrift, usize)> {
        let mut reader = Reader { rest: bytes };
        let message = reader.fields()?;
        Some((message, bytes.len() - reader.rest.len()))
    }

    fn kind(&self) -> u8 {
        match self {
            Thrift::Bool(true) => 1,
            Thrift::Bool(false) => 2,
            Thrift::Byte(_) => 3,
            Thrift::Int(kind, _) => *kind,
            Thrift::Double(_) => 7,
            Thrift::Binary(_) => 8,
            Thrift::List(..) => 9,
            Thrift::Struct(_) => 12,
        }
    }

    /// Writes the value, without the type that stands before it.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            // In a field the type says it.
            Thrift::Bool(_) => {}
            Thrift::Byte(byte) => out.push(*byte),
            Thrift::Int(_, number) => write_zigzag(out, *number),
            Thrift::Double(bytes) => out.extend(bytes),
            Thrift::Binary(bytes) => {
                write_varint(out, bytes.len() as u64);
                out.extend(bytes);
            }
            Thrift::List(kind, items, more) => {
                out.push(0xf0 | kind);
                write_varint(out, (items.len() as u64).wrapping_add(*more));
                for item in items {
                    match item {
                        Thrift::Bool(flag) => out.push(if *flag { 1 } else { 2 }),
                        item => item.write(out),
                    }
                }
            }
            Thrift::Struct(fields) => {
                for (id, value) in fields {
                    // The long form, which any field may have.
                    out.push(value.kind());
                    write_zigzag(out, i64::from(*id));
                    value.write(out);
                }
                out.push(0);
            }
        }
    }

    /// The value of field `id` of a struct.
    pub fn field(&mut self, id: i16) -> Option<&mut Thrift> {
        match self {
            Thrift::Struct(fields) => {
                let mut fields = fields.iter_mut();
                fields
                    .find(|(known, _)| *known == id)
                    .map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The items of a list; none of anything else.
    pub fn items(&mut self) -> &mut [Thrift] {
        match self {
            Thrift::List(_, items, _) => items,
            _ => &mut [],
        }
    }

    /// The number of field `id`.
    pub fn int(&mut self, id: i16) -> Option<&mut i64> {
        match self.field(id)? {
            Thrift::Int(_, number) => Some(number),
            _ => None,
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Thrift::List(_, items, _) => items.iter().map(Thrift::count).sum(),
            Thrift::Struct(fields) => fields.iter().map(|(_, value)| value.count()).sum::<usize>(),
            _ => 0,
        }
    }

    fn at(&mut self, index: &mut usize) -> Option<&mut Thrift> {
        if *index == 0 {
            return Some(self);
        }
        *index -= 1;
        match self {
            Thrift::List(_, items, _) => items.iter_mut().find_map(|item| item.at(index)),
            Thrift::Struct(fields) => fields.iter_mut().find_map(|(_, value)| value.at(index)),
            _ => None,
        }
    }

    /// Changes one value somewhere in the message.
    pub fn change(&mut self, choices: &mut Choices<'_>) {
        let mut index = below(choices, self.count());
        let Some(value) = self.at(&mut index) else {
            return;
        };
        match value {
            Thrift::Bool(flag) => *flag = !*flag,
            Thrift::Byte(byte) => *byte = number(choices, u64::from(*byte), 8) as u8,
            Thrift::Int(kind, was) => {
                let bits = [16, 32, 64][usize::from(*kind - 4)];
                let new = number(choices, *was as u64, bits);
                // Back to a signed number of so many bits.
                *was = (new << (64 - bits)) as i64 >> (64 - bits);
            }
            Thrift::Double(bytes) => bytes[below(choices, 8)] = 0xff,
            Thrift::Binary(bytes) => change_bytes(choices, bytes),
            Thrift::List(_, items, more) => {
                if once_in(choices, 3) {
                    *more = number(choices, 0, 40);
                } else {
                    change_order(choices, items);
                }
            }
            Thrift::Struct(fields) => {
                if once_in(choices, 3) && !fields.is_empty() {
                    let index = below(choices, fields.len());
                    fields[index].0 = number(choices, fields[index].0 as u64, 16) as i16;
                } else {
                    change_order(choices, fields);
                }
            }
        }
    }
}
