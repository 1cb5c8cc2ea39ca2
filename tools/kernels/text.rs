//! The kernels of a program as text, as a page of documentation and as JSON.

use serde_json::{Value, json};

use crate::{CHIPS, Catalogue, Code, Facts, Header, Mix, Outcome, Size, Timed, Work, header};
use keel_report::table::Table;

/// What stands where nothing is known.
const UNKNOWN: &str = "–";

/// The instructions that have a column: heading and how they are counted.
type Column = (&'static str, fn(&Mix) -> u32);

const COLUMNS: [Column; 10] = [
    ("instr", Mix::all),
    ("tensor", Mix::tensor),
    ("ldsm", |mix| mix.of("LDSM")),
    ("async", |mix| mix.of("LDGSTS") + mix.of("UTMALDG")),
    ("ld128", |mix| mix.of("LDG.128")),
    ("st128", |mix| mix.of("STG.128")),
    ("local", Mix::local),
    ("bar", |mix| mix.of("BAR")),
    ("shfl", |mix| mix.of("SHFL")),
    ("mufu", |mix| mix.of("MUFU")),
];

/// One number for all architectures where it is the same, all of them where not: `40` or `40/38`.
fn both(facts: &Facts, number: impl Fn(&Code) -> Option<u32>) -> String {
    let numbers: Vec<String> = facts
        .codes
        .iter()
        .map(|code| number(code).map_or(UNKNOWN.to_owned(), |n| n.to_string()))
        .collect();
    match numbers.split_first() {
        None => UNKNOWN.to_owned(),
        Some((first, rest)) if rest.iter().all(|n| n == first) => first.clone(),
        Some(_) => numbers.join("/"),
    }
}

fn occupancies(facts: &Facts) -> impl Iterator<Item = String> {
    CHIPS
        .map(|chip| match facts.occupancy(&chip) {
            None => UNKNOWN.to_owned(),
            Some(occupancy) if occupancy.blocks == 0 => "too big".to_owned(),
            Some(occupancy) => format!("{} %", occupancy.percent),
        })
        .into_iter()
}

/// The table of kernels, and what the architectures stand for.
fn table(catalogue: &Catalogue) -> String {
    let mut header: Vec<String> = ["kernel", "threads", "shared", "regs", "spill", "stack"]
        .map(str::to_owned)
        .to_vec();
    header.extend(CHIPS.map(|chip| chip.name.to_owned()));
    if catalogue.has_mixes {
        header.extend(COLUMNS.map(|(name, _)| name.to_owned()));
    }
    let mut rows = vec![header];
    for facts in &catalogue.kernels {
        let mut row = vec![
            facts.name.to_owned(),
            facts.threads.map_or("any".to_owned(), |n| n.to_string()),
            facts.shared_bytes.to_string(),
            both(facts, |code| Some(code.assembled.registers)),
            both(facts, |code| {
                Some(code.assembled.spill_store_bytes + code.assembled.spill_load_bytes)
            }),
            both(facts, |code| Some(code.assembled.stack_bytes)),
        ];
        row.extend(occupancies(facts));
        if catalogue.has_mixes {
            row.extend(COLUMNS.map(|(_, count)| both(facts, |code| code.mix.as_ref().map(count))));
        }
        rows.push(row);
    }
    Table { rows }.render()
}

/// The rooflines of examples.
fn rooflines(works: &[Work]) -> String {
    let mut header: Vec<String> = ["example", "op", "GFLOP", "MB", "flop/B"]
        .map(str::to_owned)
        .to_vec();
    header.extend(CHIPS.map(|chip| format!("{} µs", chip.name)));
    header.push("bound".to_owned());
    let mut rows = vec![header];
    for work in works {
        let bytes = work.cost.bytes_read + work.cost.bytes_written;
        let mut row = vec![
            format!("{} {}", work.example, work.shape),
            if work.precision == works[0].precision {
                work.op.to_owned()
            } else {
                format!("{} ({})", work.op, work.precision)
            },
            format!("{:.2}", work.cost.flops / 1e9),
            format!("{:.1}", bytes / 1e6),
            format!("{:.1}", work.intensity()),
        ];
        let least = work.on_every_chip();
        row.extend(least.map(|(seconds, _)| format!("{:.1}", seconds * 1e6)));
        row.push(bounds(&least.map(|(_, bound)| bound.name())));
        rows.push(row);
    }
    Table { rows }.render()
}

/// One word where all chips agree, else one for each.
fn bounds(names: &[&str]) -> String {
    if names.iter().all(|name| *name == names[0]) {
        names[0].to_owned()
    } else {
        names.join("/")
    }
}

/// Everything known of a single kernel: its header, and each architecture's numbers in words.
fn details(facts: &Facts) -> String {
    let mut text = String::new();
    if let Some(header) = header(facts.stem, facts.name) {
        text += &format!("\n\n{}: {}\n", header.title, header.sentence);
        for (field, value) in &header.fields {
            text += &format!("  {field:<9} {value}\n");
        }
    }
    for code in &facts.codes {
        text += &format!("\n{}:", code.assembled.arch);
        for chip in CHIPS.iter().filter(|c| c.runs == code.assembled.arch) {
            if let Some(occupancy) = facts.occupancy(chip) {
                text += &format!(
                    " {} holds {} blocks, {} of {} warps, limited by {};",
                    chip.name, occupancy.blocks, occupancy.warps, chip.warps, occupancy.limit
                );
            }
        }
        if let Some(mix) = &code.mix {
            let counts: Vec<String> = mix.0.iter().map(|(n, c)| format!("{n} {c}")).collect();
            text += &format!("\n  instructions: {}", counts.join(", "));
        }
    }
    text
}

/// The report for a terminal.
pub fn kernel_text(catalogue: &Catalogue, works: &[Work], size: Size) -> String {
    let mut text = table(catalogue);
    if catalogue.has_images {
        text += "\n\nbytes and registers a block or thread; two numbers are sm_80/sm_90a; a chip's column is its occupancy";
    }
    if catalogue.has_mixes {
        text += "\ninstr to mufu: how often the machine code holds an instruction (tensor: HMMA and HGMMA; async: copies to \
                 shared memory; ld128, st128: 16-byte accesses; local: spills and stack)";
    }
    if let [facts] = &catalogue.kernels[..] {
        text += &details(facts);
    }
    for remark in &catalogue.remarks {
        text += &format!("\nthe assembler warns: {remark}");
    }
    if !works.is_empty() {
        let sizes = match size {
            Size::Tiny => "tests",
            Size::Small => "the steps of this repository's recipes",
            Size::Large => "ViT-L/14 at batch 256 and a 1.5 B language model",
        };
        text += &format!(
            "\n\nLeast time by roofline, {}, shapes of {sizes}:\n\n{}",
            works[0].precision,
            rooflines(works)
        );
    }
    text
}

/// The page `docs/reference/kernels.md`: every kernel with its header's facts and what is known without a GPU.
pub fn kernel_markdown(catalogue: &Catalogue, works: &[Work]) -> String {
    let mut text = String::from(
        "# The kernels\n\nWritten by `cargo tool kernels --write`, from the headers in `cuda/` and from the images that nvcc \
         built.\nEvery kernel runs in `cargo test` on the emulator against the f64 reference, under six schedules with \
         equal bits. Where two\nnumbers stand, they are for sm_80/sm_90a. Nothing here was measured on a GPU: \
         `tools/gpu-run.sh` does that.\n",
    );
    for file in catalogue.kernels.chunk_by(|a, b| a.stem == b.stem) {
        let stem = file[0].stem;
        text += &format!("\n## cuda/{stem}.cu\n\n");
        let mut listed: Vec<String> = Vec::new();
        for header in file.iter().filter_map(|facts| header(stem, facts.name)) {
            // One header may serve several kernels of a file: storage types, sizes.
            if !listed.contains(&header.title) {
                text += &markdown_header(&header);
                listed.push(header.title);
            }
        }
        text += &format!(
            "\n| kernel | threads | shared B | registers | occupancy {} | tensor | 16-byte loads, stores | local |\n\
             |---|---|---|---|---|---|---|---|\n",
            CHIPS.map(|chip| chip.name).join(", ")
        );
        for facts in file {
            text += &markdown_row(facts);
        }
    }
    text += "\n## Least times\n\nFrom the ops' own flops and bytes, bf16, shapes of ViT-L/14 at batch 256 and a 1.5 B language \
             model; microseconds by\nroofline, and what bounds the op.\n\n| example | op | GFLOP | MB |";
    for chip in CHIPS {
        text += &format!(" {} |", chip.name);
    }
    text += " bound |\n|---|---|---|---|---|---|---|---|---|\n";
    for work in works {
        let least = work.on_every_chip();
        let times: Vec<String> = least
            .iter()
            .map(|(seconds, _)| format!("{:.1}", seconds * 1e6))
            .collect();
        text += &format!(
            "| {} {} | {} | {:.2} | {:.1} | {} | {} |\n",
            work.example,
            work.shape,
            work.op,
            work.cost.flops / 1e9,
            (work.cost.bytes_read + work.cost.bytes_written) / 1e6,
            times.join(" | "),
            bounds(&least.map(|(_, bound)| bound.name())),
        );
    }
    text
}

/// A header's facts as an item of a list.
fn markdown_header(header: &Header) -> String {
    let mut text = format!("- `{}`: {}\n", header.title, header.sentence);
    for field in ["Math", "Work", "Accuracy", "Order", "Source"] {
        if let Some(value) = header.field(field).filter(|value| *value != "-") {
            text += &format!("  - {}: `{value}`\n", field.to_lowercase());
        }
    }
    text
}

fn markdown_row(facts: &Facts) -> String {
    let count = |count: fn(&Mix) -> u32| both(facts, |code| code.mix.as_ref().map(count));
    format!(
        "| `{}` | {} | {} | {} | {} | {} | {}, {} | {} |\n",
        facts.name,
        facts.threads.map_or("any".to_owned(), |n| n.to_string()),
        facts.shared_bytes,
        both(facts, |code| Some(code.assembled.registers)),
        occupancies(facts).collect::<Vec<_>>().join(", "),
        count(Mix::tensor),
        count(|mix| mix.of("LDG.128")),
        count(|mix| mix.of("STG.128")),
        count(Mix::local),
    )
}

/// Everything as JSON.
pub fn kernel_json(catalogue: &Catalogue, works: &[Work]) -> Value {
    let kernels = catalogue.kernels.iter().map(|facts| {
        let codes = facts.codes.iter().map(|code| {
            let a = &code.assembled;
            json!({
                "arch": a.arch,
                "registers": a.registers,
                "stack_bytes": a.stack_bytes,
                "spill_store_bytes": a.spill_store_bytes,
                "spill_load_bytes": a.spill_load_bytes,
                "static_shared_bytes": a.static_shared_bytes,
                "barriers": a.barriers,
                "instructions": code.mix.as_ref().map(|mix| json!(mix.0)),
            })
        });
        let occupancy: serde_json::Map<String, Value> = CHIPS
            .iter()
            .filter_map(|chip| {
                let o = facts.occupancy(chip)?;
                let value = json!({"blocks": o.blocks, "warps": o.warps, "percent": o.percent, "limit": o.limit});
                Some((chip.name.to_owned(), value))
            })
            .collect();
        json!({
            "kernel": facts.name,
            "file": format!("cuda/{}.cu", facts.stem),
            "threads": facts.threads,
            "shared_bytes": facts.shared_bytes,
            "codes": codes.collect::<Vec<_>>(),
            "occupancy": occupancy,
        })
    });
    let works = works.iter().map(work_json);
    json!({
        "has_images": catalogue.has_images,
        "has_instructions": catalogue.has_mixes,
        "remarks": catalogue.remarks,
        "kernels": kernels.collect::<Vec<_>>(),
        "examples": works.collect::<Vec<_>>(),
    })
}

fn work_json(work: &Work) -> Value {
    let least: serde_json::Map<String, Value> = CHIPS
        .iter()
        .zip(work.on_every_chip())
        .map(|(chip, (seconds, bound))| {
            let value = json!({"microseconds": seconds * 1e6, "bound": bound.name()});
            (chip.name.to_owned(), value)
        })
        .collect();
    json!({
        "example": work.example,
        "shape": work.shape,
        "op": work.op,
        "precision": work.precision.name(),
        "flops": work.cost.flops,
        "bytes_read": work.cost.bytes_read,
        "bytes_written": work.cost.bytes_written,
        "kernels": work.kernels,
        "roofline": least,
    })
}

/// What came of an example as a line of JSON. `device` is what computed; where it is one of the chips, the share of its
/// roofline is given.
pub fn outcome_json(outcome: &Outcome, device: &str) -> Value {
    match outcome {
        Outcome::Timed(timed) => timed_json(timed, device),
        Outcome::Refused {
            example,
            shape,
            reason,
        } => json!({"kind": "refused", "example": example, "shape": shape, "reason": reason}),
    }
}

fn timed_json(timed: &Timed, device: &str) -> Value {
    let (work, median) = (&timed.work, timed.median_seconds());
    let bytes = work.cost.bytes_read + work.cost.bytes_written;
    let chip = CHIPS.iter().find(|chip| device.contains(chip.name));
    let least = chip.map(|chip| work.least_seconds(chip));
    json!({
        "kind": "op",
        "example": work.example,
        "shape": work.shape,
        "op": work.op,
        "precision": work.precision.name(),
        "kernels": work.kernels,
        "runs": timed.seconds.len(),
        "median_ms": median * 1e3,
        "min_ms": timed.seconds[0] * 1e3,
        "max_ms": timed.seconds[timed.seconds.len() - 1] * 1e3,
        "gflop_per_s": work.cost.flops / median / 1e9,
        "gb_per_s": bytes / median / 1e9,
        "working_set_mb": bytes / 1e6,
        "share_of_roofline": least.map(|(seconds, _)| seconds / median),
        "bound": least.map(|(_, bound)| bound.name()),
    })
}

/// As [`outcome_json`], as a line for a terminal.
pub fn outcome_text(outcome: &Outcome, device: &str) -> String {
    let timed = match outcome {
        Outcome::Timed(timed) => timed,
        Outcome::Refused {
            example,
            shape,
            reason,
        } => return format!("{example} {shape}: not run: {reason}"),
    };
    let row = timed_json(timed, device);
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let share = row["share_of_roofline"].as_f64();
    format!(
        "{:>10.4} ms {:>9.1} GFLOP/s {:>8.1} GB/s  {}{} {}",
        number("median_ms"),
        number("gflop_per_s"),
        number("gb_per_s"),
        share.map_or(String::new(), |share| format!(
            "{:.0} % of the roofline  ",
            100.0 * share
        )),
        timed.work.op,
        timed.work.shape,
    )
}
