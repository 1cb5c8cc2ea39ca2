//! The budget refuses exactly what was not agreed.

use std::collections::BTreeMap;

use keel_kernel_report::{Assembled, Budget, Catalogue, Code, Facts, Mix};

/// A kernel that does nothing wrong, on two architectures.
fn clean() -> Catalogue {
    let code = |arch: &str, registers| Code {
        assembled: Assembled {
            kernel: "tile_bf16".into(),
            arch: arch.into(),
            registers,
            ..Assembled::default()
        },
        mix: Some(Mix(BTreeMap::from(
            [("HMMA", 64), ("LDG.128", 4), ("EXIT", 1)].map(|(n, c)| (n.to_owned(), c)),
        ))),
    };
    Catalogue {
        kernels: vec![Facts {
            name: "tile_bf16",
            stem: "tile",
            threads: Some(128),
            shared_bytes: 4096,
            codes: vec![code("sm_80", 100), code("sm_90a", 104)],
        }],
        remarks: Vec::new(),
        has_images: true,
        has_mixes: true,
    }
}

fn count(code: &mut Code) -> &mut BTreeMap<String, u32> {
    &mut code.mix.as_mut().expect("the clean kernel was counted").0
}

#[test]
fn a_kernel_as_agreed_passes_and_the_file_reads_back() {
    let budget = Budget::of(&clean());
    assert_eq!(budget.problems(&clean()), Vec::<String>::new());
    let text = budget.write();
    assert!(
        text.contains("tile_bf16 = { shared = 4096, registers = { sm_80 = 100, sm_90a = 104 }"),
        "{text}"
    );
    assert_eq!(Budget::read("budget.toml", &text).unwrap(), budget);
    let mut smaller = clean();
    smaller.kernels[0].codes[0].assembled.registers -= 1;
    assert_eq!(budget.problems(&smaller), Vec::<String>::new());
}

#[test]
fn everything_that_was_not_agreed_is_named() {
    let budget = Budget::of(&clean());
    type Spoil = fn(&mut Catalogue);
    let cases: [(Spoil, &[&str]); 9] = [
        (
            |c| c.kernels[0].codes[0].assembled.registers = 101,
            &["tile_bf16", "100 registers", "sm_80", "101"],
        ),
        (
            |c| c.kernels[0].shared_bytes = 4112,
            &["4096 bytes", "4112"],
        ),
        (
            |c| c.kernels[0].codes[1].assembled.spill_load_bytes = 8,
            &["spill", "sm_90a", "8 loaded"],
        ),
        (
            |c| c.kernels[0].codes[1].assembled.stack_bytes = 16,
            &["stack of 16 bytes"],
        ),
        (
            |c| {
                count(&mut c.kernels[0].codes[0]).insert("STL.32".into(), 2);
            },
            &["2 accesses to local memory", "sm_80"],
        ),
        (
            |c| {
                count(&mut c.kernels[0].codes[0]).remove("HMMA");
            },
            &["agreed to use HMMA", "sm_80"],
        ),
        (
            |c| c.kernels[0].name = "tile_f32",
            &["tile_f32", "not in the budget"],
        ),
        (|c| c.kernels.clear(), &["tile_bf16", "no such kernel"]),
        (
            |c| {
                c.remarks
                    .push("tile.cu: ptxas info : (C7510) serialized".into())
            },
            &["C7510", "tile.cu"],
        ),
    ];
    for (spoil, parts) in cases {
        let mut spoiled = clean();
        spoil(&mut spoiled);
        let problems = budget.problems(&spoiled);
        let found = problems
            .iter()
            .any(|problem| parts.iter().all(|part| problem.contains(part)));
        assert!(found, "wanted {parts:?} in {problems:?}");
    }
}

#[test]
fn a_budget_of_another_form_is_refused_with_the_remedy() {
    for text in ["tile = 3", "tile = { shared = 1 }", "tile = {"] {
        let problem = Budget::read("budget.toml", text).unwrap_err().to_string();
        assert!(
            problem.starts_with("budget.toml: ") && problem.contains("cargo tool kernels --write"),
            "{problem}"
        );
    }
}
