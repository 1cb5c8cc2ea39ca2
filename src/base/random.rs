//! Random numbers that depend on what they are for, never on who asks first. Every draw of data comes from a
//! [`Stream`] keyed by (seed, purpose, epoch, sample), so a batch has the same bytes on any number of threads and after
//! any restart. [`Permutation`] walks the items of an epoch in a shuffled order without holding that order in memory.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for. Streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order in which a task walks its items.
    Order = 1,
    /// The words of a sample: template, question, distractors.
    Text = 2,
    /// The look of a sample: place, size, rotation, colours.
    Augment = 3,
    /// Which item takes the place of one that cannot be used.
    Replace = 4,
    /// Evaluation sets, so that their scenes are never training scenes.
    Evaluation = 5,
    /// Which task gets which slot of a batch.
    Schedule = 6,
    /// Which residual branches of an image a training step drops.
    DropPath = 7,
    /// Which patches of an image a training step leaves out.
    PatchDropout = 8,
}

/// Random numbers for one purpose and one sample (ChaCha with 8 rounds, keyed by the whole address).
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream at one address. Equal addresses give equal streams; any difference gives an unrelated one.
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, sample: u64) -> Stream {
        let mut key = [0u8; 32];
        let words = [seed, purpose as u64, epoch, sample];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Stream::of_key(key)
    }

    /// The stream of a whole key, for draws whose address is something else.
    pub fn of_key(key: [u8; 32]) -> Stream {
        Stream(ChaCha8Rng::from_seed(key))
    }

    /// The stream of one number, for draws that have no other address.
    pub fn of_seed(seed: u64) -> Stream {
        Stream(ChaCha8Rng::seed_from_u64(seed))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A whole number in `0..n`, without bias (Lemire 2019, "Fast random integer generation in an interval").
    /// `n` = 0 gives 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        // The high half of a product is uniform but for the low halves below 2⁶⁴ mod n, which are drawn again (Lemire
        // 2019): no division on the usual way, and no bias.
        let mut product = u128::from(self.bits()) * u128::from(n);
        if (product as u64) < n {
            let threshold = n.wrapping_neg() % n.max(1);
            while (product as u64) < threshold {
                product = u128::from(self.bits()) * u128::from(n);
            }
        }
        (product >> 64) as usize
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and standard deviation 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        // Box and Muller 1958; 1 − u, because u may be 0 and its logarithm is taken. The second number of the pair is
        // dropped: keeping it would make a draw depend on the draw before.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    /// A number in `[0, 1)` with 24 random bits.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// A number in `[low, high)`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts `items` in a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// A shuffled order of `0..len` with random access: four Feistel rounds on the smallest even number of bits that holds
/// `len`, walked until the value falls below `len` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The order of epoch `epoch` for the task numbered `task` under `seed`.
    pub fn new(len: u64, seed: u64, task: u64, epoch: u64) -> Permutation {
        let mut stream = Stream::new(seed, Purpose::Order, epoch, task);
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: [(); 4].map(|()| stream.bits()),
        }
    }

    /// The item at `position`; a one-to-one map of `0..len` on itself. `position` must be below `len`.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} of {}", self.len);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = position;
        loop {
            // A Feistel network permutes the next power of four, whatever its rounds compute; positions that fall
            // outside are sent through again until they fall inside, which keeps it a permutation (cycle walking, Black
            // and Rogaway 2002). At most four tries on average.
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                let mixed = left ^ (scramble(right ^ key) & mask);
                left = right;
                right = mixed;
            }
            value = (left << self.half_bits) | right;
            if value < self.len {
                return value;
            }
        }
    }
}

/// A 64-bit mixing function (the finaliser of SplitMix64, Steele et al. 2014).
pub fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
