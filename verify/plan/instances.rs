//! Instances of the placement problem, generated from a seed.

use keel::plan::Buffer;

/// A replayable source of numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}

/// A rectangle of ops × bytes.
#[derive(Clone, Copy)]
struct Rectangle {
    lower: u32,
    upper: u32,
    low: u64,
    high: u64,
}

/// Cuts `ops` × `units` units of 256 bytes into about `count` rectangles that leave no byte unused at any op: the
/// smallest arena is `units`·256 bytes and equals the lower bound.
///
/// Cuts go from edge to edge of a rectangle (guillotine cuts), or, for some, five ways around a centre (pinwheels, which no
/// sequence of guillotine cuts gives).
pub fn perfect(seed: u64, ops: u32, units: u64, count: usize) -> Vec<Buffer> {
    const ALIGNMENT: u64 = 256;
    let mut random = Random(seed);
    let mut rectangles = vec![Rectangle {
        lower: 0,
        upper: ops,
        low: 0,
        high: units,
    }];
    let mut failures = 0;
    while rectangles.len() < count && failures < 10_000 {
        let index = random.within(0, rectangles.len() as u64 - 1) as usize;
        let whole = rectangles[index];
        let (wide, tall) = (whole.upper - whole.lower, whole.high - whole.low);
        let kind = random.within(0, 9);
        let cut: Vec<Rectangle> = if kind == 0 && wide >= 3 && tall >= 3 {
            let (left, right) = two_cuts(&mut random, whole.lower.into(), whole.upper.into());
            let (below, above) = two_cuts(&mut random, whole.low, whole.high);
            let (left, right) = (left as u32, right as u32);
            let piece = |lower, upper, low, high| Rectangle {
                lower,
                upper,
                low,
                high,
            };
            vec![
                piece(whole.lower, right, whole.low, below),
                piece(right, whole.upper, whole.low, above),
                piece(left, whole.upper, above, whole.high),
                piece(whole.lower, left, below, whole.high),
                piece(left, right, below, above),
            ]
        } else if kind.is_multiple_of(2) && wide >= 2 {
            let at = random.within(whole.lower as u64 + 1, whole.upper as u64 - 1) as u32;
            vec![
                Rectangle { upper: at, ..whole },
                Rectangle { lower: at, ..whole },
            ]
        } else if tall >= 2 {
            let at = random.within(whole.low + 1, whole.high - 1);
            vec![
                Rectangle { high: at, ..whole },
                Rectangle { low: at, ..whole },
            ]
        } else {
            failures += 1;
            continue;
        };
        rectangles.swap_remove(index);
        rectangles.extend(cut);
    }
    shuffle(&mut random, &mut rectangles);
    rectangles
        .iter()
        .enumerate()
        .map(|(id, piece)| Buffer {
            id: id as u32,
            lower: piece.lower,
            upper: piece.upper,
            size: (piece.high - piece.low) * ALIGNMENT,
        })
        .collect()
}

fn two_cuts(random: &mut Random, low: u64, high: u64) -> (u64, u64) {
    let first = random.within(low + 1, high - 2);
    (first, random.within(first + 1, high - 1))
}

fn shuffle<T>(random: &mut Random, values: &mut [T]) {
    for last in (1..values.len()).rev() {
        values.swap(last, random.within(0, last as u64) as usize);
    }
}

/// A perfect instance from which every `nth` buffer has been taken out: there is room to spare at most ops, none at some.
pub fn with_gaps(seed: u64, ops: u32, units: u64, count: usize, nth: usize) -> Vec<Buffer> {
    let mut buffers = perfect(seed, ops, units, count);
    let mut index = 0;
    buffers.retain(|_| {
        index += 1;
        index % nth != 0
    });
    buffers
}

/// Lifetimes that nest, one to three in each, `depth` deep at most, of random sizes.
pub fn nested(seed: u64, depth: u32) -> Vec<Buffer> {
    fn within(random: &mut Random, buffers: &mut Vec<Buffer>, lower: u32, upper: u32, depth: u32) {
        if depth == 0 || upper - lower < 2 {
            return;
        }
        buffers.push(Buffer {
            id: buffers.len() as u32,
            lower,
            upper,
            size: random.within(1, 1000) * 64,
        });
        let mut at = lower;
        for _ in 0..random.within(1, 3) {
            let end = random.within(at.into(), upper.into()) as u32;
            within(random, buffers, at, end, depth - 1);
            at = end;
        }
    }
    let mut random = Random(seed);
    let mut buffers = Vec::new();
    within(&mut random, &mut buffers, 0, 1 << 20, depth);
    shuffle(&mut random, &mut buffers);
    buffers
}

/// Buffers of random lifetimes and sizes, zero among them.
pub fn random(seed: u64, ops: u32, count: usize) -> Vec<Buffer> {
    let mut random = Random(seed);
    (0..count)
        .map(|id| {
            let lower = random.within(0, u64::from(ops) - 1) as u32;
            let longest = if random.within(0, 4) == 0 {
                ops
            } else {
                1 + ops / 16
            };
            Buffer {
                id: id as u32,
                lower,
                upper: lower + random.within(1, longest.into()) as u32,
                size: random.within(0, 64) * 64,
            }
        })
        .collect()
}

/// The values of a transformer's training step: forward, loss in chunks, backward.
///
/// Records ops with what they read and write, in the way a tape would; the last op that reads a value ends its life.
pub struct Program {
    /// For each value its size, the op that makes it, and one past the last op that reads it.
    values: Vec<(u64, u32, u32)>,
    ops: u32,
}

/// What varies between programs.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Layers, of which the first `frozen` train nothing and lie below all that is trained.
    pub layers: u32,
    pub frozen: u32,
    /// B·T rows.
    pub rows: u64,
    /// Model width C.
    pub width: u64,
    /// MLP width F.
    pub mlp: u64,
    /// Width of keys and values together, at most 2·C.
    pub key_value: u64,
    /// H heads.
    pub heads: u64,
    /// A gate beside the MLP's first product (SwiGLU).
    pub is_gated: bool,
    /// Chunks of the output product and its loss, and the vocabulary V.
    pub chunks: u64,
    pub vocabulary: u64,
    /// Whether the backward of attention and of linear layers needs workspace.
    pub has_workspace: bool,
}

impl Form {
    /// A form drawn from a seed.
    pub fn draw(seed: u64) -> Form {
        let mut random = Random(seed);
        let layers = random.within(1, 24) as u32;
        let width = 64 * random.within(1, 32);
        let heads = width / 64;
        Form {
            layers,
            frozen: if random.within(0, 2) == 0 {
                random.within(0, layers.into()) as u32
            } else {
                0
            },
            rows: random.within(17, 4096),
            width,
            mlp: width * random.within(2, 5) + 64 * random.within(0, 3),
            key_value: 128 * random.within(1, heads),
            heads,
            is_gated: random.within(0, 1) == 0,
            chunks: random.within(1, 8),
            vocabulary: random.within(500, 60_000),
            has_workspace: random.within(0, 1) == 0,
        }
    }
}

struct Saved {
    x: usize,
    rstd: usize,
    normed: usize,
    query: usize,
    key_value: usize,
    attended: usize,
    lse: usize,
    middle: usize,
    rstd_middle: usize,
    normed_middle: usize,
    up: usize,
    gate: Option<usize>,
    activated: usize,
}

impl Program {
    /// Records an op that reads `inputs` and writes values of `sizes` bytes, rounded up to 256.
    fn op<const N: usize>(&mut self, inputs: &[usize], sizes: [u64; N]) -> [usize; N] {
        let op = self.ops;
        self.ops += 1;
        for &input in inputs {
            self.values[input].2 = op + 1;
        }
        sizes.map(|size| {
            self.values.push((size.next_multiple_of(256), op, op + 1));
            self.values.len() - 1
        })
    }

    /// The step as buffers.
    pub fn buffers(&self) -> Vec<Buffer> {
        let values = self.values.iter().enumerate();
        values
            .map(|(id, &(size, lower, upper))| Buffer {
                id: id as u32,
                lower,
                upper,
                size,
            })
            .collect()
    }

    /// Records a whole training step in f32.
    pub fn transformer(form: &Form) -> Program {
        let mut program = Program {
            values: Vec::new(),
            ops: 0,
        };
        let Form {
            rows,
            width,
            mlp,
            key_value,
            heads,
            ..
        } = *form;
        let (stream, lane) = (4 * rows * width, 4 * rows * mlp);
        let work = |bytes: u64| if form.has_workspace { bytes } else { 256 };

        let [tokens] = program.op(&[], [4 * rows]);
        let [mut x] = program.op(&[tokens], [stream]);
        let mut layers = Vec::new();
        for _ in 0..form.layers {
            let [normed, rstd] = program.op(&[x], [stream, 4 * rows]);
            let [query] = program.op(&[normed], [stream]);
            let [keys] = program.op(&[normed], [4 * rows * key_value]);
            let [attended, lse] = program.op(&[query, keys], [stream, 4 * rows * heads]);
            let [middle] = program.op(&[attended, x], [stream]);
            let [normed_middle, rstd_middle] = program.op(&[middle], [stream, 4 * rows]);
            let [up] = program.op(&[normed_middle], [lane]);
            let gate = form
                .is_gated
                .then(|| program.op(&[normed_middle], [lane])[0]);
            let read: Vec<usize> = std::iter::once(up).chain(gate).collect();
            let [activated] = program.op(&read, [lane]);
            let [out] = program.op(&[activated, middle], [stream]);
            layers.push(Saved {
                x,
                rstd,
                normed,
                query,
                key_value: keys,
                attended,
                lse,
                middle,
                rstd_middle,
                normed_middle,
                up,
                gate,
                activated,
            });
            x = out;
        }
        let [normed, rstd] = program.op(&[x], [stream, 4 * rows]);
        let [dnormed] = program.op(&[normed], [stream]);
        let chunk = 4 * rows.div_ceil(form.chunks) * form.vocabulary;
        for _ in 0..form.chunks {
            let [logits] = program.op(&[normed, tokens], [chunk]);
            program.op(&[logits, dnormed], [work(chunk / 4)]);
        }
        let [mut dx] = program.op(&[dnormed, x, rstd], [stream]);
        for saved in layers[form.frozen as usize..].iter().rev() {
            let read: Vec<usize> = [saved.up].into_iter().chain(saved.gate).collect();
            let [dactivated] = program.op(&[dx], [lane]);
            program.op(&[dx, saved.activated], [work(stream / 8)]);
            let [dup] = program.op(&[&read[..], &[dactivated]].concat(), [lane]);
            let dgate = form
                .is_gated
                .then(|| program.op(&[&read[..], &[dactivated]].concat(), [lane])[0]);
            let [mut dnormed] = program.op(&[dup], [stream]);
            program.op(&[dup, saved.normed_middle], [work(lane / 8)]);
            if let Some(dgate) = dgate {
                let [other] = program.op(&[dgate], [stream]);
                program.op(&[dgate, saved.normed_middle], [work(lane / 8)]);
                [dnormed] = program.op(&[dnormed, other], [stream]);
            }
            let [dmiddle] = program.op(&[dnormed, saved.middle, saved.rstd_middle, dx], [stream]);
            let [dattended] = program.op(&[dmiddle], [stream]);
            program.op(&[dmiddle, saved.attended], [work(stream / 8)]);
            let [delta] = program.op(&[dattended, saved.attended], [4 * rows * heads]);
            let [dquery, dkeys, _] = program.op(
                &[dattended, delta, saved.query, saved.key_value, saved.lse],
                [stream, 4 * rows * key_value, work(stream / 2)],
            );
            let [from_query] = program.op(&[dquery], [stream]);
            program.op(&[dquery, saved.normed], [work(stream / 8)]);
            let [dnormed] = program.op(&[dkeys, from_query], [stream]);
            program.op(&[dkeys, saved.normed], [work(stream / 8)]);
            [dx] = program.op(&[dnormed, saved.x, saved.rstd, dmiddle], [stream]);
        }
        program.op(&[dx, tokens], [256]);
        program
    }
}
