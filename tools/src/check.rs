//! `cargo tool check`: everything that has to pass before a change lands.

use std::process::Command;

/// One check: its name, what cargo is given, and a variable it is run under.
type Check<'a> = (&'a str, &'a [&'a str], Option<(&'a str, &'a str)>);

/// Runs the checks in order and stops at the first that fails.
pub fn run(arguments: &[String]) -> Result<(), String> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("check takes no arguments, found {unknown}"));
    }
    let checks: [Check<'_>; 4] = [
        ("formatting", &["fmt", "--all", "--", "--check"], None),
        (
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
            None,
        ),
        (
            "documentation",
            &["doc", "--workspace", "--no-deps"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        ),
        ("tests", &["test"], None),
    ];
    for (name, arguments, variable) in checks {
        println!("— {name}: cargo {}", arguments.join(" "));
        let mut command = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
        command.args(arguments).envs(variable);
        let status = command
            .status()
            .map_err(|problem| format!("cannot run cargo: {problem}"))?;
        if !status.success() {
            return Err(format!("{name} failed"));
        }
    }
    println!("everything passes");
    Ok(())
}
