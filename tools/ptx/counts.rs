//! What a launch executed, instruction by instruction: how often each ran, and what its accesses cost the memories.

use super::code::Code;
use super::matrix::Lanes;

/// Counts by instruction of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Times that a warp executed it.
    pub executed: Vec<u64>,
    /// Turns that its accesses took in shared memory, which gives 32 banks of 4 bytes a turn.
    pub wavefronts: Vec<u64>,
    /// Turns that the same bytes would take without bank conflicts.
    pub ideal_wavefronts: Vec<u64>,
    /// 32-byte sectors of global memory that its accesses touched, warp by warp.
    pub sectors: Vec<u64>,
    /// Bytes of global memory that it asked for; those that lanes share count once.
    pub bytes: Vec<u64>,
}

impl Counts {
    /// Nothing yet.
    pub fn of(code: &Code) -> Counts {
        let zeros = vec![0; code.instructions.len()];
        Counts {
            executed: zeros.clone(),
            wavefronts: zeros.clone(),
            ideal_wavefronts: zeros.clone(),
            sectors: zeros.clone(),
            bytes: zeros,
        }
    }

    /// An access of `lanes` to shared memory, `width` bytes each. Lanes go in turns of 128 bytes: all at once up to 4 bytes,
    /// halves of the warp at 8, quarters at 16. Within a turn, lanes that ask for the same 4 bytes share them, and different
    /// ones of the same bank go one after the other.
    pub(super) fn shared(&mut self, index: u32, addresses: &Lanes, lanes: u32, width: u32) {
        let each = match width {
            0..=4 => 32,
            8 => 16,
            _ => 8,
        };
        let mut turns = 0;
        for first in (0..32).step_by(each) {
            // The different words that are asked of each bank so far.
            let (mut words, mut asked) = ([[0u32; 32]; 32], [0usize; 32]);
            for lane in (first..first + each).filter(|lane| lanes >> lane & 1 != 0) {
                for part in 0..width.div_ceil(4) {
                    let word = addresses[lane] / 4 + part;
                    let bank = word as usize % 32;
                    if !words[bank][..asked[bank]].contains(&word) {
                        words[bank][asked[bank]] = word;
                        asked[bank] += 1;
                    }
                }
            }
            turns += asked.iter().max().copied().unwrap_or(0) as u64;
        }
        let index = index as usize;
        self.wavefronts[index] += turns;
        self.ideal_wavefronts[index] += u64::from((lanes.count_ones() * width).div_ceil(128));
    }

    /// An access of `lanes` to global memory.
    pub(super) fn global(&mut self, index: u32, addresses: &[u64; 32], lanes: u32, width: u32) {
        let (mut places, mut count) = ([0u64; 32], 0);
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            places[count] = addresses[lane];
            count += 1;
        }
        let places = &mut places[..count];
        // Mostly in order already.
        places.sort_unstable();
        let (mut bytes, mut sectors) = (0, 0);
        for (at, place) in places.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| places[before]);
            if before != Some(*place) {
                bytes += u64::from(width);
                sectors += u64::from(before.is_none_or(|before| before / 32 != place / 32));
            }
        }
        let index = index as usize;
        self.sectors[index] += sectors;
        self.bytes[index] += bytes;
    }
}
