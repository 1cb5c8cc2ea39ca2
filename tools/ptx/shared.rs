//! A block's shared memory.

use super::code::SHARED_START;

/// What is known of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has written it.
    Unwritten,
    Written,
    /// A copy to it is under way.
    Pending,
}

pub struct Shared {
    data: Vec<u8>,
    states: Vec<State>,
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        Shared {
            data: vec![0xff; bytes],
            states: vec![State::Unwritten; bytes],
        }
    }

    /// Where an access lies.
    #[inline]
    fn place(&self, address: u32, bytes: usize) -> Result<usize, String> {
        let at = address.wrapping_sub(SHARED_START) as usize;
        if at >= self.data.len() || at + bytes > self.data.len() {
            return Err(format!(
                "it touches {bytes} bytes at byte {} of {} bytes of shared memory",
                i64::from(address) - i64::from(SHARED_START),
                self.data.len()
            ));
        }
        if !at.is_multiple_of(bytes) {
            return Err(format!(
                "byte {at} of shared memory is not aligned to {bytes} bytes"
            ));
        }
        Ok(at)
    }

    #[inline]
    pub fn read(&self, address: u32, to: &mut [u8]) -> Result<(), String> {
        let at = self.place(address, to.len())?;
        let states = &self.states[at..][..to.len()];
        if let Some(byte) = states.iter().position(|state| *state != State::Written) {
            let why = match states[byte] {
                State::Pending => "to which a copy is under way",
                _ => "which nobody has written",
            };
            return Err(format!(
                "it reads byte {} of shared memory, {why}",
                at + byte
            ));
        }
        to.copy_from_slice(&self.data[at..][..to.len()]);
        Ok(())
    }

    #[inline]
    pub fn write(&mut self, address: u32, from: &[u8]) -> Result<(), String> {
        let at = self.place(address, from.len())?;
        self.require_settled(at, from.len())?;
        self.data[at..][..from.len()].copy_from_slice(from);
        self.states[at..][..from.len()].fill(State::Written);
        Ok(())
    }

    fn require_settled(&self, at: usize, bytes: usize) -> Result<(), String> {
        match self.states[at..][..bytes]
            .iter()
            .position(|state| *state == State::Pending)
        {
            Some(byte) => Err(format!(
                "it writes byte {} of shared memory, to which a copy is under way",
                at + byte
            )),
            None => Ok(()),
        }
    }

    /// A copy to `bytes` bytes begins; the place of its destination.
    pub fn expect(&mut self, address: u32, bytes: usize) -> Result<usize, String> {
        let at = self.place(address, bytes)?;
        self.require_settled(at, bytes)?;
        self.states[at..][..bytes].fill(State::Pending);
        Ok(at)
    }

    /// Where an access lies, whatever is there.
    pub fn place_of(&self, address: u32, bytes: usize) -> Result<usize, String> {
        self.place(address, bytes)
    }

    /// What a copy brings arrives, while it is still under way.
    pub fn arrive(&mut self, at: usize, from: &[u8]) {
        self.data[at..][..from.len()].copy_from_slice(from);
    }

    /// A copy is done.
    pub fn settle(&mut self, at: usize, bytes: usize) {
        self.states[at..][..bytes].fill(State::Written);
    }
}
