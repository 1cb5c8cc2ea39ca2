//! `cargo tool check`: everything that has to pass before a change lands.

use std::process::Command;

/// One check: its name, what cargo is given, and a variable it is run under.
type Check<'a> = (&'a str, &'a [&'a str], Option<(&'a str, &'a str)>);

/// Runs the checks in order and stops at the first that fails.
pub fn run(arguments: &[String]) -> Result<(), String> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("check takes no arguments, found {unknown}"));
    }
    let digest = ["run", "--release", "-p", "keel-cpu", "--example", "digest"];
    let checks: [Check<'_>; 5] = [
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
        ("bits of the processor's arithmetic", &digest, None),
    ];
    checks.into_iter().try_for_each(check)?;
    aarch64(&digest)?;
    println!("everything passes");
    Ok(())
}

/// Runs cargo.
fn check((name, arguments, variable): Check<'_>) -> Result<(), String> {
    println!("— {name}: cargo {}", arguments.join(" "));
    let mut command = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    let status = command.args(arguments).envs(variable).status();
    match status.map_err(|problem| format!("cannot run cargo: {problem}"))? {
        status if status.success() => Ok(()),
        _ => Err(format!("{name} failed")),
    }
}

/// The processor's arithmetic on aarch64: compiled where the target's standard library is installed, and run where a linker
/// and an emulator are as well.
fn aarch64(digest: &[&str]) -> Result<(), String> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let finds = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.is_ok_and(|output| output.status.success())
    };
    let library = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|problem| format!("cannot run rustc: {problem}"))?;
    if !std::path::Path::new(String::from_utf8_lossy(&library.stdout).trim()).is_dir() {
        println!("— left out: aarch64, which needs rustup target add {TARGET}");
        return Ok(());
    }
    if cfg!(not(target_arch = "aarch64"))
        && finds("qemu-aarch64", "--version")
        && finds("aarch64-linux-gnu-gcc", "--version")
    {
        let linker = "target.aarch64-unknown-linux-gnu.linker='aarch64-linux-gnu-gcc'";
        let runner =
            "target.aarch64-unknown-linux-gnu.runner='qemu-aarch64 -L /usr/aarch64-linux-gnu'";
        let cross = ["--config", linker, "--config", runner, "--target", TARGET];
        return check(("bits on aarch64", &[digest, &cross].concat(), None));
    }
    println!("— aarch64 is compiled and not run: that needs qemu-user and gcc-aarch64-linux-gnu");
    let compile = [
        "check",
        "-p",
        "keel-cpu",
        "--all-targets",
        "--target",
        TARGET,
    ];
    check(("aarch64", &compile, None))
}
