//! A kernel decoded: statements with numbered registers. Literals, parameters and special registers are registers that are
//! filled before a block starts, so that every operand is read the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::form::{self, Bank, Op};
use super::source::{Entry, MAP, Module, Operand, Place, Statement};

/// The start of shared memory in its window: not 0, so that a forgotten address is outside.
pub const SHARED_START: u32 = 1024;

/// No register.
pub const NONE: u16 = u16::MAX;

/// In a list of registers: one of 64 bits where the instruction moves fewer. A store takes its lower bits, and a load fills
/// the others with zero.
pub const WIDE: u16 = 1 << 15;

/// One instruction, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// The predicate that guards it, or [`NONE`].
    pub guard: u16,
    /// Whether the guard must be false.
    pub is_negated: bool,
    /// Where the result goes.
    pub to: u16,
    /// The first operand, or the register of an address.
    pub a: u16,
    /// The second.
    pub b: u16,
    /// The third.
    pub c: u16,
    /// The fourth.
    pub d: u16,
    /// An address's offset, a branch's target, a number that the instruction holds.
    pub value: i64,
    /// The offset of the source of a copy.
    pub source_offset: i64,
    /// Where its list of registers starts in [`Code::lists`].
    pub list: u32,
}

/// What a register holds before a block starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Initial {
    /// These bits.
    Bits(u64),
    /// The parameter of this number.
    Parameter(u16),
    /// A special register.
    Special(Special),
}

/// What a thread knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// `%tid.x`.
    Thread,
    /// `%laneid`.
    Lane,
    /// `%ntid.x`.
    Threads,
    /// `%ctaid` in x, y, z.
    Block(u8),
    /// `%nctaid` in x, y, z.
    Blocks(u8),
    /// `%tid` and `%ntid` in y and z: 0 and 1.
    Fixed(u8),
}

/// A decoded kernel.
#[derive(Clone, Debug)]
pub struct Code {
    /// Its name.
    pub name: String,
    /// Threads of a block; 0: any number.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Bytes of each parameter.
    pub parameters: Vec<u8>,
    /// What it executes.
    pub instructions: Vec<Instruction>,
    /// Registers of loads, stores and matrices.
    pub lists: Vec<u16>,
    /// Registers of 32 bits, of 64 bits and predicates.
    pub registers: [usize; 3],
    /// Those that are filled before a block starts.
    pub initial: Vec<(Bank, u16, Initial)>,
    /// The text and the source line of each instruction.
    pub statements: Vec<(String, Place)>,
    /// The forms it is made of, each once.
    pub forms: Vec<String>,
    files: Arc<BTreeMap<u32, String>>,
}

impl Code {
    /// Decodes the kernel `name` of a text.
    ///
    /// # Errors
    /// A sentence that names the form or operand the machine does not execute, or the kernel where there is none.
    pub fn decode(module: &Module, name: &str) -> Result<Code, String> {
        let found = module.entries.iter().find(|entry| entry.name == name);
        let entry = found.ok_or_else(|| format!("the text has no kernel {name}"))?;
        let mut decoder = Decoder::new(entry);
        let mut instructions = Vec::with_capacity(entry.statements.len() + 1);
        let (mut statements, mut starts) = (Vec::new(), Vec::new());
        for statement in &entry.statements {
            starts.push(instructions.len());
            let instruction = decoder.instruction(statement).map_err(|problem| {
                format!("kernel {}: {problem}: {}", entry.name, statement.text)
            })?;
            for instruction in decoder.before.drain(..).chain([instruction]) {
                instructions.push(instruction);
                statements.push((statement.text.clone(), statement.place));
            }
        }
        starts.push(instructions.len());
        for instruction in &mut instructions {
            if instruction.op == Op::Branch {
                instruction.value = starts[instruction.value as usize] as i64;
            }
        }
        let mut forms: Vec<String> = entry.statements.iter().map(|s| s.opcode.clone()).collect();
        forms.sort();
        forms.dedup();
        let bytes = |ty: &str| ty[1..].parse::<u32>().map_or(0, |bits| (bits / 8) as u8);
        Ok(Code {
            name: entry.name.clone(),
            threads: entry.threads,
            shared_bytes: entry.shared_bytes,
            parameters: entry.parameters.iter().map(|(_, ty)| bytes(ty)).collect(),
            instructions,
            lists: decoder.lists,
            registers: decoder.next.map(usize::from),
            initial: decoder
                .fixed
                .iter()
                .map(|((bank, initial), register)| (BANKS[*bank], *register, *initial))
                .collect(),
            statements,
            forms,
            files: module.files.clone(),
        })
    }

    /// The file and line of a place, `product.cuh:120`.
    pub fn show(&self, place: Place) -> String {
        match self.files.get(&place.file) {
            Some(name) => format!("{name}:{}", place.line),
            None => "an unknown line".to_owned(),
        }
    }

    /// The registers of an instruction's list.
    pub fn list(&self, instruction: &Instruction, count: usize) -> &[u16] {
        &self.lists[instruction.list as usize..][..count]
    }
}

/// An instruction that is yet to be decoded.
const EMPTY: Instruction = Instruction {
    op: Op::Nothing,
    guard: NONE,
    is_negated: false,
    to: NONE,
    a: NONE,
    b: NONE,
    c: NONE,
    d: NONE,
    value: 0,
    source_offset: 0,
    list: 0,
};

const BANKS: [Bank; 3] = [Bank::Word, Bank::Double, Bank::Predicate];

struct Decoder<'a> {
    entry: &'a Entry,
    /// The type of registers that begin so.
    types: BTreeMap<&'a str, &'a str>,
    named: BTreeMap<(usize, String), u16>,
    fixed: BTreeMap<(usize, Initial), u16>,
    next: [u16; 3],
    lists: Vec<u16>,
    /// What has to run before the instruction that is being decoded.
    before: Vec<Instruction>,
}

impl<'a> Decoder<'a> {
    fn new(entry: &'a Entry) -> Decoder<'a> {
        let types = entry.registers.iter();
        Decoder {
            entry,
            types: types
                .map(|(name, ty)| (name.as_str(), ty.as_str()))
                .collect(),
            named: BTreeMap::new(),
            fixed: BTreeMap::new(),
            next: [0; 3],
            lists: Vec::new(),
            before: Vec::new(),
        }
    }

    fn take(&mut self, bank: Bank) -> Result<u16, String> {
        let next = &mut self.next[bank as usize];
        if *next == WIDE - 1 {
            return Err("it has more registers than the machine counts".to_owned());
        }
        *next += 1;
        Ok(*next - 1)
    }

    fn fixed(&mut self, bank: Bank, initial: Initial) -> Result<u16, String> {
        let key = (bank as usize, initial);
        if let Some(register) = self.fixed.get(&key) {
            return Ok(*register);
        }
        let register = self.take(bank)?;
        self.fixed.insert(key, register);
        Ok(register)
    }

    /// The bank of a declared register.
    fn bank_of(&self, name: &str) -> Option<Bank> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let ty = self.types.get(name).or_else(|| self.types.get(stem))?;
        Some(match *ty {
            "pred" => Bank::Predicate,
            "b16" | "u16" | "s16" | "b32" | "u32" | "s32" | "f32" => Bank::Word,
            "b64" | "u64" | "s64" | "f64" => Bank::Double,
            _ => return None,
        })
    }

    fn register(&mut self, name: &str, bank: Bank) -> Result<u16, String> {
        match self.bank_of(name) {
            Some(found) if found == bank => {}
            Some(_) => return Err(format!("{name} is of another size than the instruction's")),
            None => return Err(format!("{name} is not declared")),
        }
        let key = (bank as usize, name.to_owned());
        if let Some(register) = self.named.get(&key) {
            return Ok(*register);
        }
        let register = self.take(bank)?;
        self.named.insert(key, register);
        Ok(register)
    }

    /// Something that is read.
    fn source(&mut self, operand: &Operand, bank: Bank, is_half: bool) -> Result<u16, String> {
        match operand {
            Operand::Immediate(bits) => {
                let bits = match bank {
                    Bank::Word if is_half => bits & 0xffff,
                    Bank::Word => bits & 0xffff_ffff,
                    Bank::Double => *bits,
                    Bank::Predicate => u64::from(*bits != 0),
                };
                self.fixed(bank, Initial::Bits(bits))
            }
            Operand::Name(name) => {
                if let Some(special) = special(name) {
                    return self.fixed(bank, Initial::Special(special));
                }
                if is_shared_storage(name) {
                    return self.fixed(bank, Initial::Bits(u64::from(SHARED_START)));
                }
                let mut parameters = self.entry.parameters.iter();
                if let Some(index) = parameters.position(|(known, ty)| known == name && ty == MAP) {
                    return self.fixed(bank, Initial::Parameter(index as u16));
                }
                self.register(name, bank)
            }
            other => Err(format!("the operand {other:?} is not read here")),
        }
    }

    fn target(&mut self, operand: &Operand, bank: Bank) -> Result<u16, String> {
        match operand {
            Operand::Name(name) => self.register(name, bank),
            other => Err(format!("{other:?} is no register to write to")),
        }
    }

    fn instruction(&mut self, statement: &Statement) -> Result<Instruction, String> {
        let mut out = EMPTY;
        if let Some((predicate, is_negated)) = &statement.guard {
            out.guard = self.register(predicate, Bank::Predicate)?;
            out.is_negated = *is_negated;
        }
        if statement.opcode.starts_with("ld.param.") {
            return self.parameter(statement, out);
        }
        if let "mov.b32" | "mov.b64" = statement.opcode.as_str() {
            return self.bits(statement, out);
        }
        let Some((op, places)) = form::find(&statement.opcode) else {
            return Err(format!("the form {} is not executed", statement.opcode));
        };
        out.op = op;
        match places {
            Some(places) => self.plain(statement, places, &mut out)?,
            None => self.shaped(statement, op, &mut out)?,
        }
        Ok(out)
    }

    fn plain(
        &mut self,
        statement: &Statement,
        places: &str,
        out: &mut Instruction,
    ) -> Result<(), String> {
        let (to, from) = places.split_once('=').expect("the table has it");
        if statement.operands.len() != to.len() + from.len() {
            return Err(format!("{} operands are wanted", to.len() + from.len()));
        }
        let mut operands = statement.operands.iter();
        if let Some(place) = to.chars().next() {
            let (bank, _) = place_of(place);
            out.to = self.target(operands.next().expect("counted"), bank)?;
        }
        for (at, (operand, place)) in operands.zip(from.chars()).enumerate() {
            let (bank, is_half) = place_of(place);
            let register = match operand {
                // A conversion may be given a wider register than it converts from.
                Operand::Name(name)
                    if bank == Bank::Word
                        && statement.opcode.starts_with("cvt.")
                        && self.bank_of(name) == Some(Bank::Double) =>
                {
                    self.narrowed(name)?
                }
                operand => self.source(operand, bank, is_half)?,
            };
            *[&mut out.a, &mut out.b, &mut out.c][at] = register;
        }
        Ok(())
    }

    /// The lower half of a register of 64 bits.
    fn narrowed(&mut self, name: &str) -> Result<u16, String> {
        let (to, a) = (self.take(Bank::Word)?, self.register(name, Bank::Double)?);
        self.before.push(Instruction {
            op: Op::Narrow,
            to,
            a,
            ..EMPTY
        });
        Ok(to)
    }

    /// A parameter becomes a register that holds it.
    fn parameter(
        &mut self,
        statement: &Statement,
        mut out: Instruction,
    ) -> Result<Instruction, String> {
        let [Operand::Name(to), Operand::Address(base, 0)] = &statement.operands[..] else {
            return Err("only whole parameters are read".to_owned());
        };
        let Operand::Name(name) = &**base else {
            return Err("only named parameters are read".to_owned());
        };
        let found = self
            .entry
            .parameters
            .iter()
            .position(|(known, _)| known == name);
        let index = found.ok_or_else(|| format!("there is no parameter {name}"))? as u16;
        let is_wide = self.bank_of(to) == Some(Bank::Double);
        let (bank, op) = match statement.opcode.trim_start_matches("ld.param.") {
            "s32" if is_wide => (Bank::Word, Op::S32ToS64),
            "u32" if is_wide => (Bank::Word, Op::U32ToU64),
            "u32" | "s32" | "b32" | "f32" => (Bank::Word, Op::Move32),
            "u64" | "s64" | "b64" | "f64" => (Bank::Double, Op::Move64),
            _ => return Err(format!("the form {} is not executed", statement.opcode)),
        };
        out.op = op;
        out.to = self.register(to, if is_wide { Bank::Double } else { bank })?;
        out.a = self.fixed(bank, Initial::Parameter(index))?;
        Ok(out)
    }

    /// `mov.b32` and `mov.b64`: plain, or between a register and two of half its size.
    fn bits(&mut self, statement: &Statement, mut out: Instruction) -> Result<Instruction, String> {
        let is_32 = statement.opcode == "mov.b32";
        let whole = if is_32 { Bank::Word } else { Bank::Double };
        match &statement.operands[..] {
            [to, Operand::List(parts)] if parts.len() == 2 => {
                out.op = if is_32 { Op::Pack16 } else { Op::Pack32 };
                out.to = self.target(to, whole)?;
                out.a = self.source(&parts[0], Bank::Word, is_32)?;
                out.b = self.source(&parts[1], Bank::Word, is_32)?;
            }
            [Operand::List(parts), from] if parts.len() == 2 => {
                out.op = if is_32 { Op::Unpack16 } else { Op::Unpack32 };
                out.to = self.target(&parts[0], Bank::Word)?;
                out.b = self.target(&parts[1], Bank::Word)?;
                out.a = self.source(from, whole, false)?;
            }
            [to, from] => {
                out.op = if is_32 { Op::Move32 } else { Op::Move64 };
                out.to = self.target(to, whole)?;
                out.a = self.source(from, whole, false)?;
            }
            _ => return Err("two operands are wanted".to_owned()),
        }
        Ok(out)
    }

    /// `[%rd1+16]`, `[%r1]`, `[keel_shared_storage+8]`.
    fn address(&mut self, operand: &Operand, out: &mut Instruction) -> Result<u16, String> {
        let Operand::Address(base, offset) = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        out.value = *offset;
        let bank = match &**base {
            Operand::Name(name) => self.bank_of(name).unwrap_or(Bank::Word),
            _ => Bank::Word,
        };
        self.source(base, bank, false)
    }

    fn list(&mut self, operand: &Operand, bank: Bank, count: usize) -> Result<(), String> {
        let parts = match operand {
            Operand::List(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        if parts.len() != count {
            return Err(format!("{count} registers are wanted"));
        }
        for part in parts {
            let register = self.source(part, bank, false)?;
            self.lists.push(register);
        }
        Ok(())
    }

    /// The registers of a load or store, which may be wider than what moves.
    fn moved(
        &mut self,
        opcode: &str,
        operand: &Operand,
        bytes: u8,
        count: u8,
    ) -> Result<(), String> {
        let bank = if bytes == 8 { Bank::Double } else { Bank::Word };
        let first = match operand {
            Operand::List(parts) => &parts[0],
            single => single,
        };
        let is_wider = match first {
            Operand::Name(name) => self.bank_of(name) == Some(Bank::Double) && bank == Bank::Word,
            _ => false,
        };
        if !is_wider {
            return self.list(operand, bank, usize::from(count));
        }
        let ty = opcode.rsplit('.').next().unwrap_or(opcode);
        if opcode.starts_with("ld.") && ty.starts_with('s') {
            return Err("signed values are not extended to 64 bits on their way".to_owned());
        }
        let start = self.lists.len();
        self.list(operand, Bank::Double, usize::from(count))?;
        for register in &mut self.lists[start..] {
            *register |= WIDE;
        }
        Ok(())
    }

    fn shaped(
        &mut self,
        statement: &Statement,
        op: Op,
        out: &mut Instruction,
    ) -> Result<(), String> {
        out.list = self.lists.len() as u32;
        let operands = &statement.operands[..];
        let wanted = || "its operands are not in a form that is executed".to_owned();
        match (op, operands) {
            (Op::Branch, [Operand::Name(label)]) => {
                let target = self.entry.labels.get(label);
                out.value = *target.ok_or_else(|| format!("there is no label {label}"))? as i64;
            }
            (Op::Barrier, [id, rest @ ..]) if rest.len() < 2 => {
                out.a = self.source(id, Bank::Word, false)?;
                if let [threads] = rest {
                    out.b = self.source(threads, Bank::Word, false)?;
                }
            }
            (Op::BarrierArrival, [id, threads]) => {
                out.a = self.source(id, Bank::Word, false)?;
                out.b = self.source(threads, Bank::Word, false)?;
            }
            (
                Op::Load {
                    space,
                    bytes,
                    count,
                },
                [to, from],
            ) => {
                out.a = self.address(from, out)?;
                self.check_address(space, from)?;
                self.moved(&statement.opcode, to, bytes, count)?;
            }
            (
                Op::Store {
                    space,
                    bytes,
                    count,
                },
                [to, from],
            ) => {
                out.a = self.address(to, out)?;
                self.check_address(space, to)?;
                self.moved(&statement.opcode, from, bytes, count)?;
            }
            (Op::CopyAsync, [to, from, Operand::Immediate(bytes), rest @ ..]) if rest.len() < 2 => {
                let is_past_cache = statement.opcode.contains(".cg.");
                if !matches!(bytes, 4 | 8 | 16) || (is_past_cache && *bytes != 16) {
                    return Err(format!(
                        "a copy of {bytes} bytes does not exist in this form"
                    ));
                }
                out.b = self.address(from, out)?;
                out.source_offset = out.value;
                out.a = self.address(to, out)?;
                self.check_address(form::Space::Global, from)?;
                self.check_address(form::Space::Shared, to)?;
                out.d = *bytes as u16;
                if let [source_bytes] = rest {
                    out.c = self.source(source_bytes, Bank::Word, false)?;
                }
            }
            (Op::CopyCommit, []) => {}
            (Op::CopyWait, [Operand::Immediate(open)]) => out.value = *open as i64,
            (Op::LoadMatrix { count, .. }, [to, from]) => {
                out.a = self.address(from, out)?;
                self.check_address(form::Space::Shared, from)?;
                self.list(to, Bank::Word, usize::from(count))?;
            }
            (Op::MultiplyMatrices, [d, a, b, c]) => {
                for (operand, count) in [(d, 4), (a, 4), (b, 2), (c, 4)] {
                    self.list(operand, Bank::Word, count)?;
                }
            }
            (Op::Shuffle(_), [to, value, lane, clamp, mask]) => {
                let (to, in_range) = match to {
                    Operand::Pair(to, in_range) => (to, self.register(in_range, Bank::Predicate)?),
                    Operand::Name(to) => (to, NONE),
                    _ => return Err(wanted()),
                };
                out.to = self.register(to, Bank::Word)?;
                out.a = self.source(value, Bank::Word, false)?;
                out.b = self.source(lane, Bank::Word, false)?;
                out.c = self.source(clamp, Bank::Word, false)?;
                out.d = self.source(mask, Bank::Word, false)?;
                out.value = i64::from(in_range);
            }
            _ => return self.hopper(op, operands, out),
        }
        Ok(())
    }

    /// Instructions of sm_90a.
    fn hopper(
        &mut self,
        op: Op,
        operands: &[Operand],
        out: &mut Instruction,
    ) -> Result<(), String> {
        let wanted = || "its operands are not in a form that is executed".to_owned();
        let is_unused = |operand: &Operand| *operand == Operand::Name("_".to_owned());
        match (op, operands) {
            (Op::BarrierInit, [barrier, count]) => {
                out.a = self.address(barrier, out)?;
                out.b = self.source(count, Bank::Word, false)?;
            }
            (Op::BarrierInvalidate, [barrier]) => out.a = self.address(barrier, out)?,
            (Op::BarrierCount, [state, barrier, rest @ ..])
                if is_unused(state) && rest.len() < 2 =>
            {
                out.a = self.address(barrier, out)?;
                if let [bytes] = rest {
                    out.b = self.source(bytes, Bank::Word, false)?;
                }
            }
            (Op::BarrierTest, [is_done, barrier, parity]) => {
                out.to = self.target(is_done, Bank::Predicate)?;
                out.a = self.address(barrier, out)?;
                out.b = self.source(parity, Bank::Word, false)?;
            }
            (Op::TensorLoad, [to, Operand::Box(map, coordinates), barrier]) => {
                out.b = self.source(map, Bank::Double, false)?;
                out.d = coordinates.len() as u16;
                for coordinate in coordinates {
                    let register = self.source(coordinate, Bank::Word, false)?;
                    self.lists.push(register);
                }
                out.c = self.address(barrier, out)?;
                out.source_offset = out.value;
                out.a = self.address(to, out)?;
            }
            (Op::TensorStore, [Operand::Box(map, coordinates), from]) => {
                out.b = self.source(map, Bank::Double, false)?;
                out.d = coordinates.len() as u16;
                for coordinate in coordinates {
                    let register = self.source(coordinate, Bank::Word, false)?;
                    self.lists.push(register);
                }
                out.a = self.address(from, out)?;
            }
            (Op::Elect, [Operand::Pair(lane, is_elected), mask]) if lane == "_" => {
                out.to = self.register(is_elected, Bank::Predicate)?;
                out.b = self.source(mask, Bank::Word, false)?;
            }
            (Op::StoreMatrix { .. }, [to, from]) => {
                out.a = self.address(to, out)?;
                self.list(from, Bank::Word, 4)?;
            }
            (Op::SetRegisters, [Operand::Immediate(count)]) => out.value = *count as i64,
            (Op::BulkWait | Op::GroupWait, [Operand::Immediate(open)]) => out.value = *open as i64,
            (Op::GroupMultiply { columns }, [d, a, b, accumulates, ones @ ..]) => {
                self.group_product(usize::from(columns), [d, a, b, accumulates], ones, out)?;
            }
            _ => return Err(wanted()),
        }
        Ok(())
    }

    /// `d, a, b, accumulates, 1, 1, trans-a, trans-b`: A by descriptor; or without `trans-a`: A in four registers.
    fn group_product(
        &mut self,
        columns: usize,
        [d, a, b, accumulates]: [&Operand; 4],
        flags: &[Operand],
        out: &mut Instruction,
    ) -> Result<(), String> {
        let is_fragment = matches!(a, Operand::List(_));
        let flags: Vec<u64> = flags
            .iter()
            .map(|flag| match flag {
                Operand::Immediate(value) => Ok(*value),
                other => Err(format!("{other:?} is no immediate flag")),
            })
            .collect::<Result<_, _>>()?;
        // Whether A and B are transposed, in the lowest bits.
        out.value = match (flags.as_slice(), is_fragment) {
            ([1, 1, a @ 0..=1, b @ 0..=1], false) => (a | b << 1) as i64,
            ([1, 1, b @ 0..=1], true) => (b << 1) as i64,
            _ => return Err("its flags are not in a form that is executed".to_owned()),
        };
        self.list(d, Bank::Word, columns / 2)?;
        match is_fragment {
            true => self.list(a, Bank::Word, 4)?,
            false => out.a = self.source(a, Bank::Double, false)?,
        }
        out.b = self.source(b, Bank::Double, false)?;
        out.c = self.source(accumulates, Bank::Predicate, false)?;
        Ok(())
    }

    /// Addresses of global memory take 64 bits, those of shared memory 32.
    fn check_address(&self, space: form::Space, operand: &Operand) -> Result<(), String> {
        let Operand::Address(base, _) = operand else {
            return Ok(());
        };
        let Operand::Name(name) = &**base else {
            return Err("an address is a register here".to_owned());
        };
        let want = match space {
            form::Space::Global => Bank::Double,
            form::Space::Shared => Bank::Word,
        };
        match self.bank_of(name) {
            Some(bank) if bank == want => Ok(()),
            None if is_shared_storage(name) && want == Bank::Word => Ok(()),
            _ => Err(format!("{name} is no address of this memory")),
        }
    }
}

/// The variable that a kernel's shared storage begins at: that of `cuda/kernel.cuh`, or of `cuda/hopper.cuh`.
fn is_shared_storage(name: &str) -> bool {
    matches!(name, "keel_shared_storage" | "keel_swizzled_storage")
}

fn place_of(place: char) -> (Bank, bool) {
    match place {
        'w' => (Bank::Word, false),
        'h' => (Bank::Word, true),
        'd' => (Bank::Double, false),
        'p' => (Bank::Predicate, false),
        other => unreachable!("the table has no place {other}"),
    }
}

fn special(name: &str) -> Option<Special> {
    Some(match name {
        "%tid.x" => Special::Thread,
        "%laneid" => Special::Lane,
        "%ntid.x" => Special::Threads,
        "%ctaid.x" => Special::Block(0),
        "%ctaid.y" => Special::Block(1),
        "%ctaid.z" => Special::Block(2),
        "%nctaid.x" => Special::Blocks(0),
        "%nctaid.y" => Special::Blocks(1),
        "%nctaid.z" => Special::Blocks(2),
        "%tid.y" | "%tid.z" => Special::Fixed(0),
        "%ntid.y" | "%ntid.z" => Special::Fixed(1),
        _ => return None,
    })
}
