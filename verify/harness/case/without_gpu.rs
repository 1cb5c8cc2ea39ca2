//! The kernels of a case without a GPU: their C++ on the emulator, and their PTX on the machine that executes it.

use keel::executor::SimtExecutor;
use keel::executor::simt::Options;
use keel::tape::{CompileTarget, Target};
use keel_ptx::PtxExecutor;

use super::super::ptx;
use super::{Loaded, Prepared, Readable, bits, kernels_of};

impl Prepared<'_> {
    /// The kernels on the emulator, under every schedule and copy timing: the same bits each time, within the budget.
    pub(super) fn check_on_simt(&self, seed: u64) {
        let mut first: Option<Readable> = None;
        for options in Options::proof(seed) {
            let Ok(executor) = SimtExecutor::isolating(0, options) else {
                return;
            };
            let what = format!("{}: simt with {options:?}", self.what);
            let mut simt = Loaded::try_new(self.case, &executor, Target::Cuda, self.precision)
                .unwrap_or_else(|problem| panic!("{what}: {problem}"));
            let found = simt.run(&self.floats);
            match &first {
                None => {
                    self.compare("simt", &found);
                    first = Some(found);
                }
                Some(first) => assert_eq!(bits(first), bits(&found), "{what} gives other bits"),
            }
        }
    }

    /// As [`Prepared::check_on_simt`], with kernels of the Hopper tier.
    pub(super) fn check_on_hopper(&self, compile_target: CompileTarget, kernel: &str, seed: u64) {
        let mut first: Option<Readable> = None;
        for options in Options::proof(seed) {
            let Ok(executor) = SimtExecutor::isolating(0, options) else {
                return;
            };
            let what = format!("{} on Hopper: simt with {options:?}", self.what);
            let mut simt = Loaded::try_new(self.case, &executor, compile_target, self.precision)
                .unwrap_or_else(|problem| panic!("{what}: {problem}"));
            let launched = kernels_of(simt.session.program());
            assert!(
                launched.iter().any(|name| *name == kernel),
                "{what} launches {launched:?}, not {kernel}"
            );
            let found = simt.run(&self.floats);
            match &first {
                None => {
                    self.compare("simt on Hopper", &found);
                    first = Some(found);
                }
                Some(first) => assert_eq!(bits(first), bits(&found), "{what} gives other bits"),
            }
        }
    }

    /// The PTX of the kernels, on the machine that executes it: within the budget, with copies late and early.
    pub(super) fn check_on_ptx(&self, seed: u64) {
        let Some(seen) = ptx::seen() else {
            return;
        };
        if !seen.takes(&self.case.compile(Target::Cuda, self.precision).0) {
            return;
        }
        for options in ptx::Seen::ways(seed) {
            let what = format!("{}: ptx with {options:?}", self.what);
            let executor = PtxExecutor::new(0, options, seen.record.clone())
                .unwrap_or_else(|problem| panic!("{what}: {problem}"));
            let mut machine = Loaded::try_new(self.case, &executor, Target::Cuda, self.precision)
                .unwrap_or_else(|problem| panic!("{what}: {problem}"));
            self.compare("ptx", &machine.run(&self.floats));
        }
        seen.passed();
    }
}
