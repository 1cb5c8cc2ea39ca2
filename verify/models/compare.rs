//! Runs a recorded model on every executor with a golden's parameters and inputs, and compares in the order of the step.

use std::collections::BTreeMap;
use std::sync::Arc;

use keel::error::Result;
use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session, SimtExecutor};
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape, Target, Value};
use keel::tensor::{DType, TensorType};

use crate::harness::{Budget, DRAWS, Golden, Random, derive_budget, moved};

/// Share of a tensor's largest element that one rounding of a golden to f32, and one of a setting such as ε or a loss's
/// weight, can move it by: twice 2⁻²⁴.
const GOLDEN_ROUNDING: f64 = f32::EPSILON as f64;

/// What a record function makes the gradients of.
pub enum Recorded {
    /// A loss [1].
    Loss(Value),
    /// ⟨value, cotangent⟩.
    Product(Value, Value),
}

type Record = Box<dyn Fn(&mut Tape) -> Result<Recorded>>;

/// Readable values by name.
type Values = BTreeMap<String, (TensorType, Vec<f64>)>;

/// A model to hold against its golden.
pub struct Model<'a> {
    golden: &'a Golden,
    record: Record,
    floats: BTreeMap<String, Vec<f64>>,
    integers: BTreeMap<String, Vec<i32>>,
}

/// The golden's name of what the engine calls `name`.
fn golden_key(name: &str) -> String {
    match name {
        "loss" => "loss".into(),
        "loss.next_token" => "value.next_token_loss".into(),
        "loss.contrastive" => "value.contrastive_loss".into(),
        _ if name.starts_with("gradient.") => name.into(),
        _ => format!("value.{name}"),
    }
}

impl<'a> Model<'a> {
    /// The model that `record` records; its inputs are those of the golden unless [`Model::input`] says otherwise.
    pub fn new(
        golden: &'a Golden,
        record: impl Fn(&mut Tape) -> Result<Recorded> + 'static,
    ) -> Model<'a> {
        Model {
            golden,
            record: Box::new(record),
            floats: BTreeMap::new(),
            integers: BTreeMap::new(),
        }
    }

    /// A float input that the golden holds in another form, or not at all.
    pub fn input(mut self, name: &str, values: Vec<f64>) -> Model<'a> {
        self.floats.insert(name.into(), values);
        self
    }

    /// An integer input that the golden does not hold.
    pub fn integers(mut self, name: &str, values: Vec<i32>) -> Model<'a> {
        self.integers.insert(name.into(), values);
        self
    }

    /// The parameters' places. The model must declare exactly the golden's parameters.
    fn lay_out(&self) -> Arc<ParameterLayout> {
        let mut tape = Tape::declaring();
        self.recorded(&mut tape);
        let layout = ParameterLayout::new(&tape.specs());
        let mut declared: Vec<&str> = layout
            .entries()
            .iter()
            .map(|entry| entry.spec.name.as_str())
            .collect();
        declared.sort_unstable();
        let name = &self.golden.name;
        assert_eq!(declared, self.golden.names("parameter."), "{name}");
        for entry in layout.entries() {
            let want = self.golden.shape(&format!("parameter.{}", entry.spec.name));
            assert_eq!(entry.spec.shape, want, "{name}: {}", entry.spec.name);
        }
        Arc::new(layout)
    }

    fn recorded(&self, tape: &mut Tape) -> Recorded {
        (self.record)(tape)
            .unwrap_or_else(|problem| panic!("{}: recording: {problem}", self.golden.name))
    }

    /// The program that trains everything and keeps every value that the golden has, and the product recorded.
    fn compile(
        &self,
        layout: &Arc<ParameterLayout>,
        target: Target,
        precision: DType,
    ) -> (Program, bool) {
        let mut tape = Tape::new(layout.clone(), |_| true).in_precision(precision);
        let is_product = match self.recorded(&mut tape) {
            Recorded::Loss(loss) => {
                tape.output(loss, "loss");
                tape.backward(loss).expect("everything is trained");
                false
            }
            Recorded::Product(value, cotangent) => {
                tape.backward_from(&[(value, cotangent)])
                    .expect("everything is trained");
                true
            }
        };
        let mut options = CompileOptions::new(target);
        options.keep = tape
            .values()
            .iter()
            .filter_map(|info| info.name.clone())
            .filter(|name| self.golden.has(&golden_key(name)))
            .collect();
        let program = Program::compile(tape, &options)
            .unwrap_or_else(|problem| panic!("{}: planning: {problem}", self.golden.name));
        (program, is_product)
    }

    fn float_inputs(&self, program: &Program) -> BTreeMap<String, Vec<f64>> {
        let mut floats = BTreeMap::new();
        for name in program.input_names() {
            let ty = program.ty(program.input(name).expect("listed"));
            if ty.dtype.is_float() {
                let values = match self.floats.get(name) {
                    Some(values) => values.clone(),
                    None => self.golden.floats(&format!("input.{name}")).to_vec(),
                };
                floats.insert(name.to_owned(), values);
            }
        }
        floats
    }

    fn write_integers(&self, session: &mut dyn Session) {
        let names: Vec<String> = session.program().input_names().map(str::to_owned).collect();
        for name in names {
            let value = session.program().input(&name).expect("listed");
            if session.program().ty(value).dtype != DType::I32 {
                continue;
            }
            let key = match name.as_str() {
                "caption_tokens" if self.golden.has("input.captions") => "input.captions".into(),
                _ => format!("input.{name}"),
            };
            let values = match self.integers.get(&name) {
                Some(values) => values,
                None => self.golden.integers(&key),
            };
            session
                .write_i32(&name, values)
                .expect("the golden's input fits");
        }
    }

    fn write_parameters(
        &self,
        executor: &dyn Executor,
        layout: &ParameterLayout,
        mut change: impl FnMut(f64) -> f64,
    ) {
        for entry in layout.entries() {
            let exact = self
                .golden
                .floats(&format!("parameter.{}", entry.spec.name));
            let values: Vec<f32> = exact.iter().map(|x| change(*x) as f32).collect();
            executor.write_parameters(entry.offset, &values).unwrap();
        }
    }

    /// Runs and reads everything; a model that records a product gets its loss computed here.
    fn run(
        &self,
        session: &mut dyn Session,
        floats: &BTreeMap<String, Vec<f64>>,
        is_product: bool,
    ) -> Values {
        for (name, values) in floats {
            session
                .write_f64(name, values)
                .expect("the golden's input fits");
        }
        session.run().expect("the model runs");
        let program = session.program();
        let mut values: Values = program
            .output_names()
            .map(|name| {
                let ty = program.ty(program.output(name).expect("listed"));
                let read = session.read_f64(name).expect("listed");
                (name.to_owned(), (ty, read))
            })
            .collect();
        if is_product {
            let features = &values["vision.features"].1;
            let products = features.iter().zip(&floats["cotangent"]);
            let loss = products.map(|(y, c)| y * c).sum();
            values.insert("loss".into(), (TensorType::f32([1]), vec![loss]));
        }
        values
    }

    /// Compares on every executor present: the reference and, in f32, the processor and the kernels on the emulator with
    /// the golden; the kernels in bf16 with the reference of the bf16 program. Panics naming the first tensor that differs.
    pub fn check(&self) {
        self.check_in_f32();
        self.check_in_bf16();
    }

    fn check_in_f32(&self) {
        let layout = self.lay_out();
        let elements = layout.elements();
        let what = &self.golden.name;

        let (program, is_product) = self.compile(&layout, Target::Reference, DType::F32);
        let program = Arc::new(program);
        let order = self.order(&program, is_product);
        let floats = self.float_inputs(&program);
        let executor = ReferenceExecutor::new(elements);
        self.write_parameters(&executor, &layout, |x| x);
        let mut session = executor.load(program.clone()).expect("a tiny model fits");
        self.write_integers(&mut *session);
        let truth = self.run(&mut *session, &floats, is_product);
        let exact: BTreeMap<String, Budget> = order
            .iter()
            .map(|name| {
                let want = self.golden.floats(&golden_key(name));
                let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let largest_error = GOLDEN_ROUNDING * largest;
                (
                    name.clone(),
                    Budget {
                        largest_error,
                        rounding: 0.0,
                    },
                )
            })
            .collect();
        let golden: Values = order
            .iter()
            .map(|name| {
                let (ty, _) = truth[name];
                let want = self.golden.floats(&golden_key(name)).to_vec();
                (name.clone(), (ty, want))
            })
            .collect();
        self.compare("reference", &order, &golden, &truth, &exact);

        let mut random = Random::new(0x90_1d);
        let executor = ReferenceExecutor::rounding(elements, random.below(1 << 30) as u64);
        let mut session = executor.load(program).expect("a tiny model fits");
        self.write_integers(&mut *session);
        let mut budgets = derive_budget(&truth, DRAWS, || {
            self.write_parameters(&executor, &layout, |x| {
                moved(x, DType::F32.epsilon(), &mut random)
            });
            let mut inputs = floats.clone();
            for value in inputs.values_mut().flatten() {
                *value = moved(*value, DType::F32.epsilon(), &mut random);
            }
            self.run(&mut *session, &inputs, is_product)
        });
        for (name, budget) in &mut budgets {
            if let Some(exact) = exact.get(name) {
                budget.largest_error += exact.largest_error;
            }
        }
        for threads in [1, 3] {
            let (program, _) = self.compile(&layout, Target::Cpu { threads }, DType::F32);
            let executor = CpuExecutor::new(elements, threads).expect("threads can be had");
            self.write_parameters(&executor, &layout, |x| x);
            let mut session = executor.load(Arc::new(program)).expect("a tiny model fits");
            self.write_integers(&mut *session);
            let found = self.run(&mut *session, &floats, is_product);
            self.compare("cpu", &order, &golden, &found, &budgets);
        }
        if let Some(found) = self.run_on_simt(&layout, DType::F32, &floats) {
            self.compare("simt", &order, &golden, &found, &budgets);
        }
        for name in &order {
            let shape = self.golden.shape(&golden_key(name));
            let want = self.golden.floats(&golden_key(name));
            budgets[name].must_refuse_wrong_answers(&format!("{what}: {name}"), shape, want);
        }
    }

    /// The kernels on the emulator; `None` where this program was built without it.
    fn run_on_simt(
        &self,
        layout: &Arc<ParameterLayout>,
        precision: DType,
        floats: &BTreeMap<String, Vec<f64>>,
    ) -> Option<Values> {
        let executor = SimtExecutor::new(layout.elements(), Options::default()).ok()?;
        let executor = executor.in_precision(precision);
        self.write_parameters(&executor, layout, |x| x);
        let (program, is_product) = self.compile(layout, Target::Cuda, precision);
        let mut session = executor
            .load(Arc::new(program))
            .unwrap_or_else(|problem| panic!("{} on simt: {problem}", self.golden.name));
        self.write_integers(&mut *session);
        Some(self.run(&mut *session, floats, is_product))
    }

    /// The truth is the reference on the same bf16 parameters and inputs; the budgets come from rounding what it stores,
    /// and images, which the kernels round to bf16 themselves.
    fn check_in_bf16(&self) {
        let layout = self.lay_out();
        let (program, is_product) = self.compile(&layout, Target::Reference, DType::Bf16);
        let program = Arc::new(program);
        let order = self.order(&program, is_product);
        let mut floats = self.float_inputs(&program);
        for (name, values) in &mut floats {
            let ty = program.ty(program.input(name).expect("listed"));
            if ty.dtype == DType::Bf16 {
                for value in values {
                    *value = half::bf16::from_f64(*value).to_f64();
                }
            }
        }
        let load = |executor: ReferenceExecutor| {
            self.write_parameters(&executor, &layout, |x| x);
            let mut session = executor.load(program.clone()).expect("a tiny model fits");
            self.write_integers(&mut *session);
            session
        };
        let truth = self.run(
            &mut *load(ReferenceExecutor::new(layout.elements())),
            &floats,
            is_product,
        );
        let mut random = Random::new(0x90_1e);
        let seed = random.below(1 << 30) as u64;
        let mut rounding = load(ReferenceExecutor::rounding(layout.elements(), seed));
        let budgets = derive_budget(&truth, DRAWS, || {
            let mut inputs = floats.clone();
            for value in inputs.get_mut("images").into_iter().flatten() {
                *value = moved(*value, DType::Bf16.epsilon() / 4.0, &mut random);
            }
            self.run(&mut *rounding, &inputs, is_product)
        });
        if let Some(found) = self.run_on_simt(&layout, DType::Bf16, &floats) {
            self.compare("simt in bf16", &order, &truth, &found, &budgets);
        }
        // A gradient that is zero but for roundings, as that of a key's bias, cannot refuse anything. Most are not.
        let says_something = order.iter().filter(|name| {
            let largest = truth[*name].1.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            budgets[*name].largest_error < largest
        });
        assert!(
            2 * says_something.count() > order.len(),
            "{}: most budgets in bf16 accept zeros",
            self.golden.name
        );
    }

    /// What is compared, in the order in which a step makes it: intermediates, losses, gradients from the last layer to
    /// the first. Everything the golden holds must be there.
    fn order(&self, program: &Program, is_product: bool) -> Vec<String> {
        let mut order: Vec<(usize, String)> = program
            .output_names()
            .map(|name| (program.output(name).expect("listed").index(), name.into()))
            .collect();
        order.sort();
        let mut order: Vec<String> = order.into_iter().map(|(_, name)| name).collect();
        if is_product {
            order.push("loss".into());
        }
        let held = |prefix: &str| {
            let names = self.golden.names(prefix).into_iter();
            names
                .map(|name| format!("{prefix}{name}"))
                .collect::<Vec<_>>()
        };
        for key in [held("value."), held("gradient.")].concat() {
            assert!(
                order.iter().any(|name| golden_key(name) == key),
                "{}: the model has no {key}",
                self.golden.name
            );
        }
        order.retain(|name| self.golden.has(&golden_key(name)));
        order
    }

    fn compare(
        &self,
        executor: &str,
        order: &[String],
        truth: &Values,
        found: &Values,
        budgets: &BTreeMap<String, Budget>,
    ) {
        let mut problems = order.iter().filter_map(|name| {
            let shape = self.golden.shape(&golden_key(name));
            let want = &truth[name].1;
            let problem = budgets[name].compare(shape, want, &found[name].1).err()?;
            Some(format!("{}: {problem}", golden_key(name)))
        });
        if let Some(first) = problems.next() {
            let others = problems.count();
            panic!(
                "{} on {executor}: first at {first}; {others} of the {} tensors after it differ too",
                self.golden.name,
                order.len()
            );
        }
    }
}

/// Weight of every target: 1, 1/n or 1/√n with n the supervised targets of its sample, 0 where there is none.
pub fn target_weights(golden: &Golden, samples: &[i32]) -> Vec<f64> {
    let targets = golden.integers("input.targets");
    let supervised = |sample: i32| {
        let pairs = targets.iter().zip(samples);
        pairs.filter(|(t, s)| **t >= 0 && **s == sample).count() as f64
    };
    let power = match golden.config["weighting"].as_str() {
        Some("token") => 0.0,
        Some("sample") => -1.0,
        Some("square") => -0.5,
        other => panic!("no weighting {other:?}"),
    };
    let weight = |(target, sample): (&i32, &i32)| {
        if *target >= 0 {
            supervised(*sample).powf(power)
        } else {
            0.0
        }
    };
    targets.iter().zip(samples).map(weight).collect()
}
