//! Changes of the PTX text that the emulator cannot see, as it runs the C++: each must be reported or leave something else than
//! the emulator does. A machine that let one through would prove nothing of the others.

use std::sync::{Arc, Mutex};

use keel::error::{Error, Result};
use keel::executor::simt::Emulator;
use keel::ops::{self, Heads, Mask};
use keel::tape::Value;
use keel::tensor::DType;
use keel_ptx::{CopyTiming, Kernels, Options, PtxExecutor, Record};

use crate::harness::ptx;
use crate::simt::coverage::{self, Inputs};

/// What is changed in one instruction; `None` where it is left alone.
type Change = fn(&str) -> Option<String>;

/// A program, the file and the kernel whose text is changed, and changes.
struct Trial {
    program: fn(&mut Inputs<'_>) -> Result<Value>,
    precision: DType,
    stem: &'static str,
    kernel: &'static str,
    changes: &'static [(&'static str, Change)],
}

/// `instruction` with operands `i` and `j` of those outside braces exchanged, where it is an `opcode`.
fn exchanged(instruction: &str, opcode: &str, [i, j]: [usize; 2]) -> Option<String> {
    let rest = instruction.strip_prefix(opcode)?.strip_prefix(' ')?;
    let mut parts = split(rest.trim_end_matches(';'));
    parts.swap(i, j);
    Some(format!("{opcode} {};", parts.join(", ")))
}

/// The same within the braces of operand `list`.
fn exchanged_within(
    instruction: &str,
    opcode: &str,
    list: usize,
    [i, j]: [usize; 2],
) -> Option<String> {
    let rest = instruction.strip_prefix(opcode)?.strip_prefix(' ')?;
    let mut parts = split(rest.trim_end_matches(';'));
    let inner = parts[list]
        .trim_start_matches('{')
        .trim_end_matches('}')
        .to_owned();
    let mut registers = split(&inner);
    registers.swap(i, j);
    parts[list] = format!("{{{}}}", registers.join(", "));
    Some(format!("{opcode} {};", parts.join(", ")))
}

fn replaced(instruction: &str, old: &str, new: &str) -> Option<String> {
    instruction
        .contains(old)
        .then(|| instruction.replace(old, new))
}

/// A guarded instruction that is executed where it was not, and not where it was.
fn negated(instruction: &str) -> Option<String> {
    let guard = instruction.strip_prefix('@')?;
    Some(match guard.strip_prefix('!') {
        Some(plain) => format!("@{plain}"),
        None => format!("@!{guard}"),
    })
}

fn split(list: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("there is one").push(c);
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
const PLAIN: &str = "ldmatrix.sync.aligned.m8n8.x4.shared.b16";
const TRANSPOSED: &str = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16";

/// Changes of what a product is made of.
const PRODUCT: &[(&str, Change)] = &[
    ("the second and third register of A exchanged", |i| {
        exchanged_within(i, MMA, 1, [1, 2])
    }),
    ("the registers of B exchanged", |i| {
        exchanged_within(i, MMA, 2, [0, 1])
    }),
    ("the sum's second and third register exchanged", |i| {
        exchanged_within(i, MMA, 0, [1, 2])
    }),
    ("pairs rounded in the wrong order", |i| {
        exchanged(i, "cvt.rn.bf16x2.f32", [1, 2])
    }),
    ("a wait for one group fewer", |i| {
        replaced(i, "cp.async.wait_group 2", "cp.async.wait_group 3")
    }),
    ("no group closed", |i| {
        replaced(i, "cp.async.commit_group;", "mov.u32 %r1, %r1;")
    }),
    ("half of each copy", |i| {
        let rest = i.strip_prefix("cp.async.cg.shared.global ")?;
        let parts = split(rest.trim_end_matches(';'));
        Some(format!(
            "cp.async.cg.shared.global {}, {}, 16, 8;",
            parts[0], parts[1]
        ))
    }),
    ("a comparison the other way round", |i| {
        replaced(i, "setp.ge.s32", "setp.lt.s32")
    }),
    ("a vector's parts exchanged in a store", |i| {
        exchanged_within(i, "st.global.v4.u32", 1, [0, 3])
    }),
    ("no barrier", |i| {
        replaced(i, "bar.sync 0;", "mov.u32 %r1, %r1;")
    }),
    ("every guard the other way round", negated),
    ("a distance of twice as many bytes", |i| {
        let found = i.starts_with("shl.b64 ") && i.ends_with(", 1;");
        found.then(|| i.replace(", 1;", ", 2;"))
    }),
];

/// Of rows that only copies of 4 bytes fit.
const NARROW_COPIES: (&str, Change) = ("copies of 4 bytes as copies of 8", |i| {
    let found = i.starts_with("cp.async.ca.shared.global ") && i.contains(", 4, ");
    found.then(|| i.replace(", 4, ", ", 8, "))
});

const ROWS: &[(&str, Change)] = &[
    ("an exchange with the wrong lane", |i| {
        let found = i.starts_with("mov.u32 ") && i.ends_with(", 8;");
        found.then(|| i.replace(", 8;", ", 4;"))
    }),
    ("a difference the other way round", |i| {
        exchanged(i, "sub.f32", [1, 2])
    }),
    ("a load of the wrong half", |i| {
        exchanged_within(i, "ld.global.v4.f32", 0, [0, 2])
    }),
    ("a vector's parts exchanged in a store", |i| {
        exchanged_within(i, "st.global.v4.f32", 1, [0, 1])
    }),
    ("a factor and an addend exchanged", |i| {
        exchanged(i, "fma.rn.f32", [1, 3])
    }),
    ("no barrier", |i| {
        replaced(i, "bar.sync 0;", "mov.u32 %r1, %r1;")
    }),
    ("every guard the other way round", negated),
    ("the next element's place", |i| {
        let found = i.starts_with("add.s32 ") && i.ends_with(", 512;");
        found.then(|| i.replace(", 512;", ", 513;"))
    }),
];

/// Of rows that end within a vector.
const RAGGED_ROWS: &[(&str, Change)] = &[("a choice the other way round", |i| {
    let mut parts = split(i.strip_prefix("selp.f32 ")?.trim_end_matches(';'));
    parts.swap(1, 2);
    Some(format!("selp.f32 {};", parts.join(", ")))
})];

fn attention(t: &mut Inputs<'_>) -> Result<Value> {
    let heads = Heads {
        query: 2,
        key_value: 1,
        dim: 64,
    };
    let qkv = t.x([1, 70, heads.packed_width()]);
    ops::attention(t.tape(), qkv, heads, Mask::Causal, None)
}

const TRIALS: &[Trial] = &[
    Trial {
        program: |t| coverage::linear(t, 70, 200, 72),
        precision: DType::Bf16,
        stem: "linear",
        kernel: "linear_forward_small_bf16",
        changes: PRODUCT,
    },
    Trial {
        program: |t| coverage::linear(t, 70, 202, 72),
        precision: DType::Bf16,
        stem: "linear",
        kernel: "linear_forward_small_bf16",
        changes: &[NARROW_COPIES],
    },
    Trial {
        program: |t| coverage::linear(t, 70, 200, 72),
        precision: DType::Bf16,
        stem: "linear",
        kernel: "linear_backward_weight_small_bf16",
        changes: &[
            ("matrices that are not transposed", |i| {
                replaced(i, TRANSPOSED, PLAIN)
            }),
            PRODUCT[0],
            PRODUCT[1],
        ],
    },
    Trial {
        program: |t| coverage::linear(t, 70, 200, 72),
        precision: DType::Bf16,
        stem: "linear",
        kernel: "linear_backward_input_small_bf16",
        changes: &[
            ("matrices that are transposed", |i| {
                replaced(i, PLAIN, TRANSPOSED)
            }),
            ("matrices that are not transposed", |i| {
                replaced(i, TRANSPOSED, PLAIN)
            }),
        ],
    },
    Trial {
        program: |t| coverage::linear(t, 70, 200, 72),
        precision: DType::F32,
        stem: "linear",
        kernel: "linear_forward_small_f32",
        changes: &[PRODUCT[0], PRODUCT[1], PRODUCT[3], PRODUCT[4], PRODUCT[7]],
    },
    Trial {
        program: |t| coverage::norms(t, 520),
        precision: DType::F32,
        stem: "norm",
        kernel: "layer_norm_forward_middle_f32",
        changes: ROWS,
    },
    Trial {
        program: |t| coverage::norms(t, 521),
        precision: DType::F32,
        stem: "norm",
        kernel: "layer_norm_forward_middle_f32",
        changes: RAGGED_ROWS,
    },
    Trial {
        program: attention,
        precision: DType::Bf16,
        stem: "attention",
        kernel: "attention_forward_d64_bf16",
        changes: &[
            PRODUCT[0],
            PRODUCT[1],
            PRODUCT[3],
            PRODUCT[9],
            ("keys and values transposed wrongly", |i| {
                replaced(i, TRANSPOSED, PLAIN)
            }),
            ("the largest score's neighbour", |i| {
                let found = i.starts_with("mov.u32 ") && i.ends_with(", 2;");
                found.then(|| i.replace(", 2;", ", 4;"))
            }),
            ("an exponential of the wrong sign", |i| {
                let rest = i.strip_prefix("ex2.approx.ftz.f32 ")?;
                let (to, from) = rest.trim_end_matches(';').split_once(", ")?;
                Some(format!(
                    "neg.f32 {to}, {from};\nex2.approx.ftz.f32 {to}, {to};"
                ))
            }),
        ],
    },
];

/// The text of `kernel` with `change` made to every instruction that it knows; how many those were.
fn changed(text: &str, kernel: &str, change: Change) -> (String, usize) {
    let start = text
        .find(&format!(".visible .entry {kernel}("))
        .expect("the image has the kernel");
    let length = text[start..].find("\n}\n").expect("its body ends") + 3;
    let constant = format!("keel_block_{kernel}[");
    let constant = text.lines().find(|line| line.contains(&constant));
    let mut lines = vec![constant.expect("the KERNEL line left it").to_owned()];
    let mut count = 0;
    lines.extend(text[start..][..length].lines().map(|line| {
        let found = change(line.trim());
        count += usize::from(found.is_some());
        found.unwrap_or_else(|| line.to_owned())
    }));
    (lines.join("\n"), count)
}

/// What a run with this text reports, copies late and early.
fn report(trial: &Trial, text: &str) -> Result<()> {
    let late = Options::default();
    let early = Options {
        copies: CopyTiming::Early,
        runs_backwards: true,
        ..late
    };
    for options in [late, early] {
        let record: Arc<Mutex<Record>> = Arc::default();
        let kernels = Kernels::changed(text).map_err(Error::kernel)?;
        let executor = PtxExecutor::new(0, options, record)?
            .within_bound()
            .with_kernels(kernels);
        let program = coverage::program(trial.program, trial.precision)?;
        coverage::run_on(&executor, program)?;
    }
    Ok(())
}

#[test]
fn every_change_of_the_text_is_noticed() {
    if ptx::seen().is_none() {
        return;
    }
    if let Err(reason) = Emulator::new() {
        eprintln!("not run: {reason}");
        return;
    }
    let texts = keel_ptx::texts().expect("seen");
    for trial in TRIALS {
        let whole = &texts[trial.stem];
        let (unchanged, _) = changed(whole, trial.kernel, |_| None);
        report(trial, &unchanged).unwrap_or_else(|problem| panic!("unchanged: {problem}"));
        for (what, change) in trial.changes {
            let (text, count) = changed(whole, trial.kernel, *change);
            assert!(count > 0, "{}: there is nothing for {what}", trial.kernel);
            let found = report(trial, &text);
            let problem = found.expect_err(&format!("{}: {what} is not noticed", trial.kernel));
            assert!(
                problem.to_string().contains(trial.kernel),
                "{what}: {problem}"
            );
        }
    }
}
