//! What ranks say to one another on the control channel, and how it is written: a length, a letter, a body.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::progress::Doing;

/// No message is longer: a length beyond it is another program's bytes.
const MOST_BYTES: usize = 1 << 28;

/// Who knocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// What program and version it is.
    pub keel: String,
    /// The launcher's name for the job.
    pub job: String,
    /// Its rank.
    pub rank: usize,
    /// How many ranks it knows of.
    pub ranks: usize,
    /// Its host, and its device where it has one.
    pub host: String,
    /// Its process there.
    pub process: u32,
}

/// Anything that is said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// The first of a rank.
    Hello(Hello),
    /// The hosts of all ranks: everyone is there.
    Welcome(Vec<String>),
    /// The sender lives, and does this.
    Beat(Doing),
    /// A rank's part of a vote.
    Part {
        /// The how-many-eth vote.
        number: u64,
        /// What it is about.
        what: String,
        /// The rank's bytes.
        bytes: Vec<u8>,
    },
    /// All parts of a vote.
    Parts {
        /// The how-many-eth vote.
        number: u64,
        /// By rank.
        parts: Vec<Vec<u8>>,
    },
    /// The job ends, and why.
    End(Cause),
    /// The sender has nothing more to say, and nothing is wrong.
    Bye,
}

/// Bytes that are no message.
fn unreadable(what: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Message {
    /// The message as bytes, its length first.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        match self {
            Message::Hello(hello) => json(&mut bytes, b'H', hello),
            Message::Welcome(hosts) => json(&mut bytes, b'W', hosts),
            Message::Beat(doing) => json(&mut bytes, b'B', doing),
            Message::End(cause) => json(&mut bytes, b'E', cause),
            Message::Bye => bytes.push(b'Y'),
            Message::Part {
                number,
                what,
                bytes: own,
            } => {
                bytes.push(b'P');
                bytes.extend(number.to_le_bytes());
                block(&mut bytes, what.as_bytes());
                block(&mut bytes, own);
            }
            Message::Parts { number, parts } => {
                bytes.push(b'A');
                bytes.extend(number.to_le_bytes());
                parts.iter().for_each(|part| block(&mut bytes, part));
            }
        }
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    /// Writes the message in one piece.
    ///
    /// # Errors
    /// Whatever writing reports; `InvalidInput` for a message that no reader would take.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let bytes = self.bytes();
        if bytes.len() - 4 > MOST_BYTES {
            let problem = format!(
                "a vote of {} bytes; at most {MOST_BYTES} are sent",
                bytes.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        to.write_all(&bytes)
    }

    /// Reads one message; `None` where the sender has closed between two.
    ///
    /// # Errors
    /// Whatever reading reports; `InvalidData` for bytes that are no message.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Message>> {
        let mut length = [0; 4];
        let first = loop {
            match from.read(&mut length) {
                Err(problem) if problem.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut length[first..])?;
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 || length > MOST_BYTES {
            return Err(unreadable(format!("a message of {length} bytes")));
        }
        // Taken as it comes: a length that lies must not cost its memory.
        let mut body = Vec::new();
        let read = from.take(length as u64).read_to_end(&mut body)?;
        if read < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Message::parse(&body).map(Some)
    }

    fn parse(body: &[u8]) -> io::Result<Message> {
        let (letter, rest) = body.split_first().ok_or_else(|| unreadable("no letter"))?;
        match letter {
            b'H' => from_json(rest).map(Message::Hello),
            b'W' => from_json(rest).map(Message::Welcome),
            b'B' => from_json(rest).map(Message::Beat),
            b'E' => from_json(rest).map(Message::End),
            b'Y' => Ok(Message::Bye),
            b'P' => {
                let (number, rest) = number(rest)?;
                let blocks = blocks(rest)?;
                let [what, bytes] = <[Vec<u8>; 2]>::try_from(blocks)
                    .map_err(|_| unreadable("a vote has a name and a part"))?;
                let what = String::from_utf8(what).map_err(unreadable)?;
                Ok(Message::Part {
                    number,
                    what,
                    bytes,
                })
            }
            b'A' => {
                let (number, rest) = number(rest)?;
                let parts = blocks(rest)?;
                Ok(Message::Parts { number, parts })
            }
            other => Err(unreadable(format!("a message of the unknown kind {other}"))),
        }
    }
}

fn json(bytes: &mut Vec<u8>, letter: u8, value: &impl Serialize) {
    bytes.push(letter);
    serde_json::to_writer(bytes, value).expect("numbers and text are written to memory");
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(unreadable)
}

fn block(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u64).to_le_bytes());
    bytes.extend(part);
}

fn number(bytes: &[u8]) -> io::Result<(u64, &[u8])> {
    let (number, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| unreadable("a number that is cut off"))?;
    Ok((u64::from_le_bytes(*number), rest))
}

fn blocks(mut bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = number(bytes)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (block, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| unreadable("a part that is cut off"))?;
        blocks.push(block.to_vec());
        bytes = rest;
    }
    Ok(blocks)
}
