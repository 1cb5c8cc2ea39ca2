//! A case: one op (or a few) with inputs, run on every executor present, values and gradients.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keel::cpu::Bf16Products;
use keel::error::Result;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session};
use keel::program::{CompileOptions, Program};
use keel::tape::{CompileTarget, ParameterLayout, Tape, Target, Tier, Value};
use keel::tensor::{DType, Shape, TensorType};

mod without_gpu;

use super::budget::Budget;
use super::expected::{self, Expected, expected};
use super::golden::Golden;
use super::gpu::{Gpu, gpu, kernels_of};
use super::{DRAWS, Random, derive_budget, gradcheck, moved};

/// The elements of an input.
#[derive(Clone, Debug)]
pub enum Data {
    /// Of type f32.
    F32(Vec<f32>),
    /// Of type i32.
    I32(Vec<i32>),
}

/// What a case's record function returns of one output.
#[derive(Clone, Debug)]
pub struct Returned {
    pub name: &'static str,
    pub value: Value,
    pub is_differentiable: bool,
}

/// An output whose gradient is checked.
pub fn out(name: &'static str, value: Value) -> Returned {
    Returned {
        name,
        value,
        is_differentiable: true,
    }
}

/// An output that is compared but not differentiated: statistics, integers.
pub fn aux(name: &'static str, value: Value) -> Returned {
    Returned {
        name,
        value,
        is_differentiable: false,
    }
}

struct CaseInput {
    name: &'static str,
    ty: TensorType,
    data: Data,
    is_differentiable: bool,
}

type Record = Box<dyn Fn(&mut Tape, &[Value]) -> Result<Vec<Returned>>>;

/// One op with inputs. Build it with [`Case::new`], [`Case::input`] and its siblings, then [`check`] it.
pub struct Case {
    name: String,
    inputs: Vec<CaseInput>,
    record: Record,
    checks_wrong_answers: bool,
    in_f64_only: bool,
    runs_in_bf16: bool,
    rounds_operands: bool,
    stays_f32: Vec<&'static str>,
}

impl Case {
    /// A case that records its op with `record`, which is given the inputs in the order they were added.
    pub fn new(
        name: impl Into<String>,
        record: impl Fn(&mut Tape, &[Value]) -> Result<Vec<Returned>> + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            inputs: Vec::new(),
            record: Box::new(record),
            checks_wrong_answers: true,
            in_f64_only: false,
            runs_in_bf16: true,
            rounds_operands: false,
            stays_f32: Vec::new(),
        }
    }

    /// Adds a float input whose gradient is checked.
    pub fn input(self, name: &'static str, shape: impl Into<Shape>, data: Vec<f32>) -> Case {
        self.add(name, TensorType::f32(shape), Data::F32(data), true)
    }

    /// Adds a float input that owes no gradient.
    pub fn constant(self, name: &'static str, shape: impl Into<Shape>, data: Vec<f32>) -> Case {
        self.add(name, TensorType::f32(shape), Data::F32(data), false)
    }

    /// Adds an integer input.
    pub fn integers(self, name: &'static str, shape: impl Into<Shape>, data: Vec<i32>) -> Case {
        self.add(name, TensorType::i32(shape), Data::I32(data), false)
    }

    /// For inputs on which a wrong answer is right, for example a gradient that is zero by construction.
    pub fn without_wrong_answers(mut self) -> Case {
        self.checks_wrong_answers = false;
        self
    }

    /// For goldens whose results are smaller than the rounding of f32 intermediates: only the reference is held to them.
    pub fn in_f64_only(mut self) -> Case {
        self.in_f64_only = true;
        self
    }

    /// For ops that have no bf16 form: what they work on is f32 in every precision.
    pub fn in_f32_only(mut self) -> Case {
        self.runs_in_bf16 = false;
        self
    }

    /// Of a differentiable input that is f32 in bf16 programs too, although it is no vector.
    pub fn stays_f32(mut self, name: &'static str) -> Case {
        self.stays_f32.push(name);
        self
    }

    /// For kernels that round what they multiply to bf16 inside, as attention does with its probabilities: the budget of a
    /// bf16 case then allows for inputs that are rounded once more.
    pub fn rounds_operands(mut self) -> Case {
        self.rounds_operands = true;
        self
    }

    /// The type of an input in `precision`: in bf16 programs vectors, constants and integers stay as they are.
    fn type_of(&self, input: &CaseInput, precision: DType) -> TensorType {
        let is_stored = input.is_differentiable
            && input.ty.dtype == DType::F32
            && input.ty.shape.rank() >= 2
            && !self.stays_f32.contains(&input.name);
        if is_stored {
            TensorType::new(precision, input.ty.shape)
        } else {
            input.ty
        }
    }

    fn add(mut self, name: &'static str, ty: TensorType, data: Data, diff: bool) -> Case {
        let elements = match &data {
            Data::F32(values) => values.len(),
            Data::I32(values) => values.len(),
        };
        assert_eq!(elements, ty.numel(), "{}: input {name}", self.name);
        self.inputs.push(CaseInput {
            name,
            ty,
            data,
            is_differentiable: diff,
        });
        self
    }

    /// The program of the case: outputs under their names, gradients as `gradient.<input>`.
    fn compile(
        &self,
        target: impl Into<CompileTarget>,
        precision: DType,
    ) -> (Arc<Program>, Vec<(&'static str, TensorType)>) {
        let mut tape =
            Tape::new(Arc::new(ParameterLayout::default()), |_| false).in_precision(precision);
        let values: Vec<Value> = self
            .inputs
            .iter()
            .map(|input| {
                let ty = self.type_of(input, precision);
                if input.is_differentiable {
                    tape.input_with_gradient(input.name, ty)
                } else {
                    tape.input(input.name, ty)
                }
            })
            .collect();
        let returned = (self.record)(&mut tape, &values)
            .unwrap_or_else(|problem| panic!("{}: recording failed: {problem}", self.name));
        let mut seeds = Vec::new();
        let mut cotangents = Vec::new();
        for output in &returned {
            tape.output(output.value, output.name);
            if output.is_differentiable && tape.requires_gradient(output.value) {
                let ty = tape.ty(output.value);
                let cotangent = tape.input(format!("cotangent.{}", output.name), ty);
                seeds.push((output.value, cotangent));
                cotangents.push((output.name, ty));
            }
        }
        if !seeds.is_empty() {
            tape.backward_from(&seeds)
                .unwrap_or_else(|problem| panic!("{}: backward failed: {problem}", self.name));
        }
        let compile_target = target.into();
        let options = CompileOptions {
            // The emulator gives every value memory of its own.
            share_memory: compile_target.target != Target::Cuda,
            ..CompileOptions::new(compile_target)
        };
        let program = Program::compile(tape, &options)
            .unwrap_or_else(|problem| panic!("{}: planning failed: {problem}", self.name));
        (Arc::new(program), cotangents)
    }
}

/// Every input moved by a few units in the last place of f32.
fn all_moved(
    floats: &BTreeMap<String, Vec<f64>>,
    random: &mut Random,
) -> BTreeMap<String, Vec<f64>> {
    let mut all = floats.clone();
    for value in all.values_mut().flatten() {
        *value = moved(*value, DType::F32.epsilon(), random);
    }
    all
}

/// A case loaded on one executor.
pub(super) struct Loaded<'a> {
    case: &'a Case,
    session: Box<dyn Session>,
}

impl<'a> Loaded<'a> {
    fn new(
        case: &'a Case,
        executor: &dyn Executor,
        target: Target,
        precision: DType,
    ) -> Loaded<'a> {
        Loaded::try_new(case, executor, target, precision).expect("a small case fits in memory")
    }

    fn try_new(
        case: &'a Case,
        executor: &dyn Executor,
        target: impl Into<CompileTarget>,
        precision: DType,
    ) -> Result<Loaded<'a>> {
        let (program, _) = case.compile(target, precision);
        Ok(Loaded {
            case,
            session: executor.load(program)?,
        })
    }

    /// Runs with the given float inputs (in f64) and the case's integers; returns all readable values by name.
    pub fn run(
        &mut self,
        floats: &BTreeMap<String, Vec<f64>>,
    ) -> BTreeMap<String, (TensorType, Vec<f64>)> {
        for (name, values) in floats {
            self.session
                .write_f64(name, values)
                .expect("the case's inputs fit");
        }
        for input in &self.case.inputs {
            if let Data::I32(values) = &input.data {
                self.session
                    .write_i32(input.name, values)
                    .expect("the case's inputs fit");
            }
        }
        if let Err(problem) = self.session.run() {
            panic!("{}: {problem}", self.case.name);
        }
        let program = self.session.program();
        program
            .output_names()
            .map(|name| {
                let ty = program.ty(program.output(name).expect("listed"));
                let values = self
                    .session
                    .read_f64(name)
                    .unwrap_or_else(|problem| panic!("{}: {problem}", self.case.name));
                (name.to_owned(), (ty, values))
            })
            .collect()
    }
}

/// A case in one precision: its inputs, what the reference makes of them, and how far from that others may be.
struct Prepared<'a> {
    case: &'a Case,
    precision: DType,
    what: String,
    floats: BTreeMap<String, Vec<f64>>,
    truth: Readable,
    budgets: BTreeMap<String, Budget>,
}

/// Everything a run leaves readable, by name.
type Readable = BTreeMap<String, (TensorType, Vec<f64>)>;

impl<'a> Prepared<'a> {
    /// With values and budgets from the reference.
    fn new(case: &'a Case, precision: DType, seed: u64) -> Prepared<'a> {
        let (mut prepared, mut random) = Prepared::inputs(case, precision, seed);
        let Prepared { what, floats, .. } = &prepared;
        let reference = &ReferenceExecutor::new(0);
        let truth = Loaded::new(case, reference, Target::Reference, precision).run(floats);
        for (name, (_, values)) in &truth {
            assert!(
                values.iter().all(|x| x.is_finite()),
                "{what}: reference {name} is not finite"
            );
        }
        let executor = ReferenceExecutor::rounding(0, random.below(1 << 30) as u64);
        let mut rounding = Loaded::new(case, &executor, Target::Reference, precision);
        prepared.budgets = derive_budget(&truth, DRAWS, || {
            let mut moved_floats = floats.clone();
            for values in moved_floats.values_mut() {
                let is_rounded = precision == DType::Bf16 && case.rounds_operands;
                for value in values {
                    *value = if is_rounded {
                        moved(*value, DType::Bf16.epsilon() / 4.0, &mut random)
                    } else {
                        moved(*value, DType::F32.epsilon(), &mut random)
                    };
                }
            }
            rounding.run(&moved_floats)
        });
        prepared.truth = truth;
        prepared
    }

    /// With values and budgets that were computed beforehand.
    fn read(
        records: &HashMap<expected::Key, Vec<u8>>,
        case: &'a Case,
        precision: DType,
        seed: u64,
    ) -> Prepared<'a> {
        let (mut prepared, _) = Prepared::inputs(case, precision, seed);
        let values = expected::find(records, prepared.key())
            .unwrap_or_else(|problem| panic!("{}: {problem}", prepared.what));
        let (program, _) = case.compile(Target::Reference, precision);
        for (name, (values, budget)) in values {
            let ty = program.ty(program
                .output(&name)
                .expect("it was one when it was written"));
            prepared.truth.insert(name.clone(), (ty, values));
            prepared.budgets.insert(name, budget);
        }
        prepared
    }

    /// The inputs alone, and the random numbers that come after them.
    fn inputs(case: &'a Case, precision: DType, seed: u64) -> (Prepared<'a>, Random) {
        // A stream of its own: cases draw their inputs from `seed`, and the cotangents must not repeat them.
        let mut random = Random::new(!seed);
        let (_, cotangents) = case.compile(Target::Reference, precision);
        let mut floats = BTreeMap::new();
        for input in &case.inputs {
            if let Data::F32(values) = &input.data {
                let ty = case.type_of(input, precision);
                floats.insert(input.name.to_owned(), stored(values, ty));
            }
        }
        for (name, ty) in &cotangents {
            let values = random.normals(ty.numel(), 1.0);
            floats.insert(format!("cotangent.{name}"), stored(&values, *ty));
        }
        let prepared = Prepared {
            case,
            precision,
            what: format!("{} (seed {seed}, {precision})", case.name),
            floats,
            truth: BTreeMap::new(),
            budgets: BTreeMap::new(),
        };
        (prepared, random)
    }

    /// A hash of the case and of all that it computes from.
    fn key(&self) -> expected::Key {
        let mut parts: Vec<&[u8]> = vec![self.what.as_bytes()];
        for (name, values) in &self.floats {
            parts.extend([name.as_bytes(), bytemuck::cast_slice(values)]);
        }
        for input in &self.case.inputs {
            if let Data::I32(values) = &input.data {
                parts.extend([input.name.as_bytes(), bytemuck::cast_slice(values)]);
            }
        }
        expected::key(parts)
    }

    /// What the reference found, for those that compare without it.
    fn values(&self) -> expected::Values {
        let exact = Budget {
            largest_error: 0.0,
            rounding: 0.0,
        };
        self.truth
            .iter()
            .map(|(name, (ty, values))| {
                let budget = match ty.dtype {
                    DType::I32 => exact,
                    _ => self.budgets[name],
                };
                (name.clone(), (values.clone(), budget))
            })
            .collect()
    }

    /// Loads the case on `executor`.
    fn load(&self, executor: &dyn Executor, target: Target) -> Loaded<'a> {
        Loaded::new(self.case, executor, target, self.precision)
    }

    /// Holds what `executor` found against the reference.
    fn compare(&self, executor: &str, found: &Readable) {
        let what = &self.what;
        for (name, (ty, want)) in &self.truth {
            let (_, got) = &found[name];
            if ty.dtype == DType::I32 {
                assert_eq!(want, got, "{what}: {executor} {name}");
                continue;
            }
            if let Err(problem) = self.budgets[name].compare(ty.shape, want, got) {
                panic!("{what}: {executor} {name}: {problem}");
            }
        }
    }

    fn must_refuse_wrong_answers(&self) {
        for (name, (ty, want)) in &self.truth {
            if ty.dtype == DType::I32 {
                continue;
            }
            let what = format!("{}: {name}", self.what);
            let budget = &self.budgets[name];
            match self.precision {
                DType::Bf16 => budget.must_refuse_wrong_answers_it_can_tell(&what, ty.shape, want),
                _ => budget.must_refuse_wrong_answers(&what, ty.shape, want),
            }
        }
    }

    /// The kernels on the GPU: the same bits each time, within the budget. A row says how much of the budget was used.
    fn check_on_gpu(&self, gpu: &Gpu, compile_target: impl Into<CompileTarget>) {
        let what = format!("{}: {}", self.what, gpu.found.name);
        let mut loaded = Loaded::try_new(self.case, &gpu.executor, compile_target, self.precision)
            .unwrap_or_else(|problem| panic!("{what}: {problem}"));
        let kernels = kernels_of(loaded.session.program());
        let found = loaded.run(&self.floats);
        let again = loaded.run(&self.floats);
        let same = bits(&found) == bits(&again);
        let (worst, share) = self.worst(&found);
        expected::row(&serde_json::json!({
            "kind": "case",
            "case": self.case.name,
            "what": self.what,
            "precision": self.precision.name(),
            "device": gpu.found.name,
            "stand_in": gpu.is_stand_in(),
            "kernels": kernels,
            "worst": worst,
            "share_of_budget": share,
            "same_bits_again": same,
        }));
        self.compare(&gpu.found.name, &found);
        assert!(same, "{what}: a second run gives other bits");
    }

    /// The tensor that is farthest off for what it may be, and the share of its budget; 1e300 for what is no number or must
    /// be equal and is not.
    fn worst(&self, found: &Readable) -> (&str, f64) {
        let shares = self.truth.iter().map(|(name, (ty, want))| {
            let errors = want.iter().zip(&found[name].1).map(|(a, b)| (a - b).abs());
            let largest = errors.fold(
                0.0,
                |most: f64, error| {
                    if error <= most { most } else { error }
                },
            );
            let allowed = match ty.dtype {
                DType::I32 => 0.0,
                _ => self.budgets[name].largest_error,
            };
            let share = match largest {
                0.0 => 0.0,
                _ => (largest / allowed).min(1e300),
            };
            (name.as_str(), if share.is_nan() { 1e300 } else { share })
        });
        shares
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("a case has an output")
    }

    /// The processor with one thread and with three: the same bits each time, within the budget.
    fn check_on_cpu(&self, products: Bf16Products) {
        let what = format!("{}, {}", self.what, products.name());
        let mut first: Option<Readable> = None;
        for threads in [1, 3] {
            let executor = CpuExecutor::new(0, threads).expect("threads can be had");
            let executor = executor.with_bf16_products(products);
            let mut cpu = self.load(&executor, Target::Cpu { threads });
            let found = cpu.run(&self.floats);
            let repeated = cpu.run(&self.floats);
            assert_eq!(
                bits(&found),
                bits(&repeated),
                "{what}: a second run gives other bits"
            );
            match &first {
                None => {
                    self.compare("cpu", &found);
                    first = Some(found);
                }
                Some(first) => assert_eq!(
                    bits(first),
                    bits(&found),
                    "{what}: {threads} threads give other bits"
                ),
            }
        }
    }
}

/// The values as they are once stored in a tensor of type `ty`.
fn stored(values: &[f32], ty: TensorType) -> Vec<f64> {
    values
        .iter()
        .map(|x| match ty.dtype {
            DType::Bf16 => half::bf16::from_f32(*x).to_f64(),
            _ => f64::from(*x),
        })
        .collect()
}

/// Holds the kernels of the Hopper tier to the reference, of a case whose shapes choose them: on the emulator within the budget,
/// with the same bits under every schedule, or on a GPU of that tier. `kernel` is one that its program must launch.
pub fn check_on_hopper(case: &Case, kernel: &str, seed: u64) {
    let precision = DType::Bf16;
    let compile_target = CompileTarget {
        target: Target::Cuda,
        precision,
        tier: Tier::Hopper,
    };
    match expected() {
        Expected::Computed => {
            Prepared::new(case, precision, seed).check_on_hopper(compile_target, kernel, seed);
        }
        Expected::Written(file) => {
            let prepared = Prepared::new(case, precision, seed);
            expected::write(file, prepared.key(), &prepared.values());
        }
        Expected::Read(records) => {
            let gpu = gpu().expect("it says itself what is missing");
            if gpu.found.tier != Tier::Hopper {
                return eprintln!("not run: {} is not of the Hopper tier", gpu.found.name);
            }
            Prepared::read(records, case, precision, seed).check_on_gpu(gpu, compile_target);
        }
    }
}

/// Checks a case on every executor present, or does with it what `KEEL_EXPECTED` says. Panics with the first thing that is
/// wrong.
pub fn check(case: &Case, seed: u64) {
    let precisions = if case.runs_in_bf16 {
        &[DType::F32, DType::Bf16][..]
    } else {
        &[DType::F32]
    };
    match expected() {
        Expected::Computed => check_everywhere(case, seed),
        Expected::Written(file) => {
            for precision in precisions {
                let prepared = Prepared::new(case, *precision, seed);
                expected::write(file, prepared.key(), &prepared.values());
            }
        }
        Expected::Read(records) => {
            let gpu = gpu().expect("it says itself what is missing");
            for precision in precisions {
                Prepared::read(records, case, *precision, seed).check_on_gpu(gpu, Target::Cuda);
            }
        }
    }
}

/// As [`check`], of a case that would take the emulator too long: the GPU alone is held to the reference, where there is one.
pub fn check_on_gpu(case: &Case, seed: u64) {
    let is_written = matches!(expected(), Expected::Written(_));
    if !is_written && gpu().is_none() {
        return;
    }
    for precision in [DType::F32, DType::Bf16] {
        let prepared = match expected() {
            Expected::Read(records) => Prepared::read(records, case, precision, seed),
            _ => Prepared::new(case, precision, seed),
        };
        match (expected(), gpu()) {
            (Expected::Written(file), _) => {
                expected::write(file, prepared.key(), &prepared.values());
            }
            (_, Some(gpu)) => prepared.check_on_gpu(gpu, Target::Cuda),
            (_, None) => unreachable!("looked for above"),
        }
    }
}

/// Of a case of whole numbers, with cotangents of whole numbers, of which every sum is exact in f32: the kernels on the GPU,
/// where there is one, must leave the processor's results, rounded once to their storage type. For shapes at which the
/// reference would take too long.
pub fn check_exact_on_gpu(case: &Case, seed: u64) {
    if matches!(expected(), Expected::Written(_)) {
        return;
    }
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(!seed);
    let (mut prepared, _) = Prepared::inputs(case, DType::F32, seed);
    for (name, values) in &mut prepared.floats {
        if name.starts_with("cotangent.") {
            let whole = random.whole(values.len());
            *values = whole.into_iter().map(f64::from).collect();
        }
    }
    let threads = 2;
    let cpu = CpuExecutor::new(0, threads).expect("threads can be had");
    let mut cpu = prepared.load(&cpu, Target::Cpu { threads });
    let exact = cpu.run(&prepared.floats);
    for precision in [DType::F32, DType::Bf16] {
        let what = format!("{} in {precision} on {}", case.name, gpu.found.name);
        let mut loaded = Loaded::try_new(case, &gpu.executor, Target::Cuda, precision)
            .unwrap_or_else(|problem| panic!("{what}: {problem}"));
        gpu.note(&case.name, loaded.session.program());
        for (name, (ty, found)) in loaded.run(&prepared.floats) {
            let want: Vec<f32> = exact[&name].1.iter().map(|x| *x as f32).collect();
            let want = stored(&want, ty);
            if let Some(at) = found.iter().zip(&want).position(|(a, b)| a != b) {
                panic!(
                    "{what}: element {at} of {name} {} is {}, and {} is exact",
                    ty.shape, found[at], want[at]
                );
            }
        }
    }
}

/// The f64 reference is held against central differences; the processor, with one thread and with three (same bits), and
/// the kernels on the emulator, in f32 and in bf16 and under six schedules (same bits), and on the GPU where there is one
/// (twice, same bits), are held against the reference under the derived budget, which must itself refuse four kinds of wrong
/// answer.
fn check_everywhere(case: &Case, seed: u64) {
    let prepared = Prepared::new(case, DType::F32, seed);
    let differentiable: Vec<&str> = case
        .inputs
        .iter()
        .filter(|i| i.is_differentiable)
        .map(|i| i.name)
        .collect();
    if prepared
        .floats
        .keys()
        .any(|name| name.starts_with("cotangent."))
    {
        gradcheck::check(
            &prepared.what,
            &mut prepared.load(&ReferenceExecutor::new(0), Target::Reference),
            &prepared.floats,
            &prepared.truth,
            &differentiable,
            &mut Random::new(!seed ^ 1),
        );
    }
    prepared.check_on_cpu(Bf16Products::Widened);
    if case.checks_wrong_answers {
        prepared.must_refuse_wrong_answers();
    }
    let check_kernels = |prepared: &Prepared| {
        prepared.check_on_simt(seed);
        prepared.check_on_ptx(seed);
        if let Some(gpu) = gpu() {
            prepared.check_on_gpu(gpu, Target::Cuda);
        }
    };
    check_kernels(&prepared);
    if case.runs_in_bf16 {
        let prepared = Prepared::new(case, DType::Bf16, seed);
        if case.checks_wrong_answers {
            prepared.must_refuse_wrong_answers();
        }
        // Where the machine has no instruction for pairs, or for tiles of them, its model takes its place.
        for products in Bf16Products::ALL {
            prepared.check_on_cpu(products);
        }
        check_kernels(&prepared);
    }
}

/// Holds a case against what PyTorch made of it in f64: `value.<output>` and `gradient.<input>` under the cotangents
/// `cotangent.<output>` of the golden. The names of the case are those of the golden.
///
/// The reference must agree to [`GOLDEN_AGREEMENT`] of each tensor's largest element, which allows for two orders of
/// summation in f64 and for constants that were rounded to f32; the processor must stay within the derived budget.
pub fn check_golden(case: &Case, golden: &Golden) {
    let (_, cotangents) = case.compile(Target::Reference, DType::F32);
    let mut floats: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for input in &case.inputs {
        if let Data::F32(values) = &input.data {
            floats.insert(
                input.name.into(),
                values.iter().map(|x| f64::from(*x)).collect(),
            );
        }
    }
    for (name, ty) in &cotangents {
        let key = format!("cotangent.{name}");
        let values = if golden.has(&key) {
            golden.floats(&key).to_vec()
        } else {
            vec![0.0; ty.numel()]
        };
        floats.insert(key, values);
    }
    let what = &case.name;
    let mut reference = Loaded::new(
        case,
        &ReferenceExecutor::new(0),
        Target::Reference,
        DType::F32,
    );
    let found = reference.run(&floats);
    let mut random = Random::new(0);
    let executor = ReferenceExecutor::rounding(0, random.below(1 << 30) as u64);
    let mut rounding = Loaded::new(case, &executor, Target::Reference, DType::F32);
    let budgets = derive_budget(&found, DRAWS, || {
        rounding.run(&all_moved(&floats, &mut random))
    });
    let executor = CpuExecutor::new(0, 2).expect("threads can be had");
    let mut cpu = Loaded::new(case, &executor, Target::Cpu { threads: 2 }, DType::F32);
    let fast = cpu.run(&floats);
    let mut compared = 0;
    for (name, (ty, got)) in &found {
        let key = match name.strip_prefix("gradient.") {
            Some(_) => name.clone(),
            None => format!("value.{name}"),
        };
        if !golden.has(&key) || ty.dtype == DType::I32 {
            continue;
        }
        compared += 1;
        let want = golden.floats(&key);
        assert_eq!(want.len(), got.len(), "{what}: {key}");
        let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let exact = Budget {
            largest_error: GOLDEN_AGREEMENT * scale + GOLDEN_FLOOR,
            rounding: 0.0,
        };
        if let Err(problem) = exact.compare(ty.shape, want, got) {
            panic!("{what}: reference {key}: {problem}");
        }
        if case.in_f64_only {
            continue;
        }
        let mut budget = budgets[name];
        budget.largest_error += exact.largest_error;
        if let Err(problem) = budget.compare(ty.shape, want, &fast[name].1) {
            panic!("{what}: cpu {key}: {problem}");
        }
    }
    assert!(
        compared > 0,
        "{what}: the golden has none of the case's outputs"
    );
}

/// Share of a tensor's largest element by which the reference may differ from PyTorch's f64: one f32 rounding of an input
/// that PyTorch kept in f64 (2⁻²⁴), and no more.
const GOLDEN_AGREEMENT: f64 = 1.2e-7;

/// Below this, a golden is what cancellation of terms of up to a hundred has left of f64's last digits.
const GOLDEN_FLOOR: f64 = 1e-12;

fn bits(values: &BTreeMap<String, (TensorType, Vec<f64>)>) -> BTreeMap<&str, Vec<u64>> {
    values
        .iter()
        .map(|(name, (_, v))| (name.as_str(), v.iter().map(|x| x.to_bits()).collect()))
        .collect()
}
