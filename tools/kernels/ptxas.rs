//! What the assembler said about each kernel (`ptxas -v`): registers, shared memory, stack, spills, and remarks.

/// One kernel for one chip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assembled {
    /// The kernel.
    pub kernel: String,
    /// The architecture it was assembled for, for example `sm_80`.
    pub arch: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of the stack frame of a thread, in local memory.
    pub stack_bytes: u32,
    /// Bytes that a thread writes to local memory because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes that it reads back.
    pub spill_load_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub static_shared_bytes: u32,
    /// Hardware barriers of a block.
    pub barriers: u32,
}

/// Everything the assembler said about one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Kernels, one entry for each architecture.
    pub kernels: Vec<Assembled>,
    /// Warnings, and remarks of the family C75xx: the assembler had to serialise or change asynchronous products.
    pub remarks: Vec<String>,
}

/// Reads the assembler's text.
pub fn read(text: &str) -> Report {
    let mut report = Report::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("ptxas warning") || line.contains("(C75") {
            report.remarks.push(line.to_owned());
        } else if let Some(rest) = after(line, "Compiling entry function '") {
            let mut names = rest.split('\'');
            report.kernels.push(Assembled {
                kernel: names.next().unwrap_or_default().to_owned(),
                arch: names.nth(1).unwrap_or_default().to_owned(),
                ..Assembled::default()
            });
        } else if let Some(kernel) = report.kernels.last_mut() {
            // A function that was not inlined has a frame of its own, listed after its kernel's: the largest counts.
            for (number, what) in facts(line) {
                match what {
                    "bytes stack frame" => kernel.stack_bytes = kernel.stack_bytes.max(number),
                    "bytes spill stores" => {
                        kernel.spill_store_bytes = kernel.spill_store_bytes.max(number);
                    }
                    "bytes spill loads" => {
                        kernel.spill_load_bytes = kernel.spill_load_bytes.max(number);
                    }
                    "registers" => kernel.registers = number,
                    "barriers" => kernel.barriers = number,
                    "bytes smem" => kernel.static_shared_bytes = number,
                    "bytes cumulative stack size" => {
                        kernel.stack_bytes = kernel.stack_bytes.max(number);
                    }
                    _ => {}
                }
            }
        }
    }
    report
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

/// The counted things of a line such as `ptxas info : Used 25 registers, used 1 barriers, 16 bytes smem`.
fn facts(line: &str) -> impl Iterator<Item = (u32, &str)> {
    let line = after(line, "ptxas info    : ").unwrap_or(line);
    line.split(", ").filter_map(|part| {
        let part = part.trim_start_matches("Used ").trim_start_matches("used ");
        let (number, what) = part.split_once(' ')?;
        Some((number.parse().ok()?, what))
    })
}
