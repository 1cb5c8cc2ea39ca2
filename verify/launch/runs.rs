//! `keel train` under the variables that launchers set.

use std::path::Path;

use crate::command::{Answer, command};

/// Two steps of every stage, with variables that a launcher would set.
fn train(folder: &Path, variables: &[(&str, &str)], more: &[&str]) -> Answer {
    let args = [
        "train",
        "--recipe",
        "tiny",
        "--max-steps",
        "2",
        "--no-evaluation",
        "--device",
        "cpu",
    ];
    let mut command = command(folder, &[&args, more].concat());
    command.envs(variables.iter().copied());
    Answer::of(command.output().expect("the program starts"))
}

/// What torchrun sets for the first of two ranks.
const FIRST_OF_TWO: [(&str, &str); 6] = [
    ("RANK", "0"),
    ("WORLD_SIZE", "2"),
    ("LOCAL_RANK", "0"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("MASTER_ADDR", "127.0.0.1"),
    ("MASTER_PORT", "29500"),
];

#[test]
fn ranks_that_nothing_joins_are_refused_before_a_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |variables: &[(&str, &str)], more: &[&str], parts: &[&str]| {
        train(folder.path(), variables, more).refused(parts);
    };
    let no_engine = [
        "the 2 ranks that torchrun started: expected an engine between processors",
        "start with mpirun",
    ];
    refused(&FIRST_OF_TWO, &[], &no_engine);
    let half = ["the environment of torchrun", "no WORLD_SIZE", "RANK=1"];
    refused(&[("RANK", "1")], &[], &half);
    refused(
        &[],
        &["--ranks-from", "slurm"],
        &["--ranks-from slurm", "SLURM_PROCID"],
    );
    let twice = [
        "--ranks: expected no such option, or --ranks-from none",
        "torchrun started 2 ranks",
    ];
    refused(&FIRST_OF_TWO, &["--ranks", "2"], &twice);
    train(folder.path(), &[], &["--ranks-from", "torchrum"]).misunderstood(&["torchrun"]);
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_launcher_s_variables_can_be_left_unread() {
    let folder = tempfile::tempdir().unwrap();
    let answer = train(
        folder.path(),
        &FIRST_OF_TWO,
        &["--ranks-from", "none", "--out", "alone"],
    )
    .fine();
    assert!(!answer.stdout.contains("ranks:"), "{answer:#?}");
    assert!(folder.path().join("alone/checkpoints").is_dir());
}
