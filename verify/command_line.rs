//! The command line: what it says of what it does not understand, that every command has the same words for the same things,
//! exit codes, help, completions and manual pages.

use std::fs;

use keel::units::{bytes, counted, duration, flops, grouped};

use crate::bad_input::{DRAWS_PAIRS, everything_in, pairs, place, train};
use crate::command::{Answer, command, keel, tiny_recipe};
use crate::data_pairs::images;

#[test]
fn a_near_miss_comes_first_and_what_there_is_on_the_next_line() {
    let folder = place();
    let path = folder.path();
    let lines = |answer: Answer, first: &str, second: &str| {
        let answer = answer.code_is(2);
        let mut lines = answer.stderr.lines();
        let (near, list) = (lines.next().unwrap(), lines.next().unwrap());
        assert_eq!(near.strip_prefix("error: "), Some(first), "{answer:#?}");
        assert!(list.starts_with(second), "{answer:#?}");
    };
    let key = "--set stage.warm-up.lerning_rate=1: stage warm-up: lerning_rate: found lerning_rate (did you mean \
               learning_rate?)";
    lines(
        train(path, &["--set", "stage.warm-up.lerning_rate=1"]),
        key,
        "  expected one of name, kind, ",
    );
    lines(
        keel(path, &["plan", "--recipe", "tinny"]),
        "--recipe: found tinny (did you mean tiny?)",
        "  expected the path of a TOML file or one of emoji, ",
    );
    lines(
        keel(
            path,
            &["plan", "--recipe", "tiny", "--stage", "fine-graned"],
        ),
        "--stage: found fine-graned (did you mean fine-grained?)",
        "  expected one of warm-start-vision, ",
    );
    lines(
        keel(path, &["data", "show", "--task", "factz"]),
        "--task: found factz (did you mean facts?)",
        "  expected one of short_captions, ",
    );
    lines(
        keel(path, &["ablate", "strategis"]),
        "plan: found strategis (did you mean strategies?)",
        "  expected the path of a TOML file or one of strategies, ",
    );
    lines(
        keel(path, &["trian"]),
        "keel has no command trian (did you mean train?)",
        "  its commands: train, plan, ",
    );
    lines(
        keel(path, &["data", "chek"]),
        "keel data has no command chek (did you mean check?)",
        "  its commands: show, check, ",
    );
    lines(
        keel(path, &["plan", "--recpie", "tiny"]),
        "keel plan has no option --recpie (did you mean --recipe?)",
        "  its options: --recipe, --set, ",
    );
    lines(
        keel(path, &["train", "--device", "cdua"]),
        "--device: found cdua (did you mean cuda?)",
        "  expected one of auto, cpu, cuda, simt",
    );
    let unlike =
        train(path, &["--frobnicate"]).misunderstood(&["keel train has no option --frobnicate\n"]);
    assert!(!unlike.stderr.contains("did you mean"), "{unlike:#?}");
    // Nothing near: all of it on one line.
    keel(path, &["train", "--device", "abacus"])
        .misunderstood(&["--device: expected one of auto, cpu, cuda, simt, found abacus\n"]);
}

#[test]
fn options_of_other_trainers_are_answered_with_what_does_it_here() {
    let folder = place();
    let path = folder.path();
    let settings = [
        ("--lr", "2e-4"),
        ("--batch-size", "4"),
        ("--epochs", "2.0"),
        ("--steps", "7"),
        ("--weight-decay", "0.1"),
        ("--warmup", "0.1"),
        ("--grad-clip", "0.5"),
        ("--max-length", "64"),
        ("--lr-scheduler", "cosine"),
        ("--micro-batch-size", "4"),
    ];
    for (option, value) in settings {
        let answer = train(path, &[option, value])
            .misunderstood(&[option, "\n  stages of one.toml: warm-up"]);
        // What is proposed can be done as it stands, but for the stage's name.
        let (_, set) = answer.stderr.split_once("--set ").unwrap();
        let set = set.split_whitespace().next().unwrap();
        assert!(set.ends_with(&format!("={value}")), "{answer:#?}");
        let set = set.replace("stage.NAME.", "stage.warm-up.");
        let plan = ["train", "--recipe", "one.toml", "--dry-run", "--set", &set];
        keel(path, &plan).fine();
    }
    let joined = train(path, &["--lr=2e-4"]);
    joined.misunderstood(&["--set stage.NAME.learning_rate=2e-4"]);
    let bare = train(path, &["--lr"]);
    bare.misunderstood(&["--set stage.NAME.learning_rate="]);
    train(path, &["-o", "mine"]).misunderstood(&["-o: here it is --out mine\n"]);
    train(path, &["--output", "mine"]).misunderstood(&["--output: here it is --out mine\n"]);
    train(path, &["--model", "clip"]).misunderstood(&["--vision DIR and --language DIR"]);
    train(path, &["--gpu", "--quick"]).misunderstood(&["--gpu: here it is --device cuda\n"]);
    keel(path, &["eval", "--checkpoint", "run"]).misunderstood(&["stands by itself"]);
    keel(path, &["resume", "runs/x", "--threads", "1"])
        .misunderstood(&["here it is keel train --resume runs/x --threads 1\n"]);
    keel(path, &["evaluate", "run"]).misunderstood(&["here it is keel eval run\n"]);
    // A command without settings of a recipe has nothing to propose.
    let answer = keel(path, &["caption", "--lr", "1"]).misunderstood(&["no option --lr"]);
    assert!(!answer.stderr.contains("--set"), "{answer:#?}");
}

#[test]
fn former_names_of_options_are_answered_with_the_new_ones() {
    let folder = place();
    let path = folder.path();
    train(path, &["--keep-pictures", "1G"]).misunderstood(&["here it is --image-cache 1G"]);
    train(path, &["--evaluation-pictures", "9"])
        .misunderstood(&["here it is --evaluation-images 9"]);
    keel(path, &["eval", "run", "--pictures", "9"]).misunderstood(&["here it is --images 9"]);
    keel(path, &["export", "run", "--out", "x", "--part", "whole"])
        .misunderstood(&["--part whole is now --part model"]);
}

#[test]
fn a_number_that_cannot_be_is_refused_as_a_value_of_its_option() {
    let folder = place();
    let cases: [(&[&str], &str); 7] = [
        (
            &["--seed", "-1"],
            "--seed: expected a whole number from 0 to 9223372036854775807, found -1",
        ),
        (
            &["--threads", "0"],
            "--threads: expected a whole number from 1 to 1024, found 0",
        ),
        (
            &["--save-every", "-5"],
            "--save-every: expected a whole number from 0 to 1000000000000, found -5",
        ),
        (
            &["--max-steps", "0"],
            "--max-steps: expected a whole number from 1 to 1000000000000, found 0",
        ),
        (
            &["--max-steps", "two"],
            "--max-steps: expected a whole number from 1 to 1000000000000, found two",
        ),
        (
            &["--spike-threshold", "-1"],
            "--spike-threshold: expected a number from 0 to 1000000000, found -1",
        ),
        (
            &["--memory-limit", "12Q"],
            "--memory-limit: expected a size such as 512M or 80G",
        ),
    ];
    for (further, said) in cases {
        train(folder.path(), further).misunderstood(&[said]);
    }
}

#[test]
fn a_size_below_a_mebibyte_needs_its_unit() {
    let folder = place();
    let path = folder.path();
    for (size, meant) in [
        ("8", "8G"),
        ("80", "80G"),
        ("512", "512M"),
        ("262144", "262144K"),
    ] {
        let near = format!("--memory-limit: found {size} (did you mean {meant}?)\n");
        let bytes = format!("{size} without a unit is {size} bytes");
        train(path, &["--memory-limit", size]).misunderstood(&[&near, &bytes]);
    }
    train(path, &["--image-cache", "8"]).misunderstood(&["did you mean 8G?"]);
    for size in ["67108864", "65536K", "64M", "0.0625g", "64MiB"] {
        let limit = ["--memory-limit", size, "--image-cache", "0", "--dry-run"];
        train(path, &limit).fine();
    }
}

#[test]
fn every_command_knows_the_same_devices() {
    let folder = place();
    let path = folder.path();
    let commands: [&[&str]; 3] = [
        &["plan", "--recipe", "one.toml"],
        &["train", "--recipe", "one.toml", "--dry-run"],
        &["profile", "--recipe", "one.toml", "--steps", "1"],
    ];
    for command in commands {
        let on = |device: &str| keel(path, &[command, &["--device", device]].concat());
        on("abacus")
            .misunderstood(&["--device: expected one of auto, cpu, cuda, simt, found abacus"]);
        on("cpu").fine();
    }
    // A plan needs no device; gpu is what many call cuda.
    let plan = |device: &str| keel(path, &["plan", "--recipe", "one.toml", "--device", device]);
    let cuda = plan("cuda").fine().stdout;
    assert!(cuda.starts_with("planned for cuda, bf16\n"), "{cuda}");
    for device in ["gpu", "simt"] {
        assert_eq!(plan(device).fine().stdout, cuda, "{device}");
    }
    let cpu = keel(
        path,
        &[
            "plan",
            "--recipe",
            "one.toml",
            "--device",
            "cpu",
            "--threads",
            "2",
        ],
    );
    let cpu = cpu.fine().stdout;
    assert!(
        cpu.starts_with("planned for cpu, 2 threads, f32\n"),
        "{cpu}"
    );
    let half = [
        "plan",
        "--recipe",
        "one.toml",
        "--device",
        "cpu",
        "--precision",
        "bf16",
    ];
    let half = keel(path, &half).fine().stdout;
    assert!(half.starts_with("planned for cpu, "), "{half}");
    assert!(half.lines().next().unwrap().ends_with("bf16"), "{half}");
}

#[test]
fn a_plan_in_bf16_takes_half_the_activations_on_the_processor_too() {
    let folder = place();
    // The activations of all stages together, in MiB.
    let activations = |precision: &str| -> f64 {
        let args = "plan --device cpu --threads 2 --precision";
        let args: Vec<&str> = args.split(' ').chain([precision]).collect();
        let said = keel(folder.path(), &args).fine().stdout;
        let lines = said.lines().map(str::split_whitespace);
        let of_line = |mut words: std::str::SplitWhitespace<'_>| {
            (words.next()? == "activations").then(|| words.next()?.parse::<f64>().ok())?
        };
        let all: Vec<f64> = lines.filter_map(of_line).collect();
        assert_eq!(all.len(), 7, "{said}");
        all.iter().sum()
    };
    // All but statistics and the products' scratch memory, which are f32.
    let share = activations("bf16") / activations("f32");
    assert!((0.45..=0.52).contains(&share), "{share}");
}

#[test]
fn precision_auto_takes_the_type_whose_products_are_faster_and_says_so() {
    let folder = place();
    let args = "train --dry-run --recipe one.toml --device cpu --precision auto";
    let said = keel(folder.path(), &args.split(' ').collect::<Vec<_>>())
        .fine()
        .stdout;
    let faster = match keel::cpu::bf16_products() {
        keel::cpu::Bf16Products::Pairs | keel::cpu::Bf16Products::Tiles => "bf16",
        keel::cpu::Bf16Products::Widened => "f32",
    };
    assert!(
        said.contains(&format!("; {faster} is faster here)")),
        "{said}"
    );
    // Whoever does not ask gets f32, on every machine.
    let args = "train --dry-run --recipe one.toml --device cpu";
    let said = keel(folder.path(), &args.split(' ').collect::<Vec<_>>())
        .fine()
        .stdout;
    assert!(said.contains(", f32 (as asked)"), "{said}");
}

#[test]
fn a_way_of_computing_products_is_taken_from_the_environment_or_refused_by_name() {
    let folder = place();
    let run = |args: &str, value: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        let mut command = command(folder.path(), &args);
        let command = command.env(keel::cpu::BF16_PRODUCTS_VARIABLE, value);
        Answer::of(command.output().expect("the program starts"))
    };
    let train = "train --dry-run --recipe one.toml --device cpu --precision";
    let said = run(&format!("{train} bf16"), "f32").fine().stdout;
    assert!(said.contains(", bf16, products in f32 "), "{said}");
    // What decides which type is faster is the way that products are computed.
    let said = run(&format!("{train} auto"), "f32").fine().stdout;
    assert!(said.contains("; f32 is faster here)"), "{said}");
    let plan = "plan --recipe one.toml --device cpu --precision auto".to_owned();
    let mut wrong = vec!["tensor cores"];
    if keel::cpu::tile_unit::Amx::find().is_err() {
        wrong.push("amx");
    }
    for value in wrong {
        for args in [format!("{train} bf16"), plan.clone()] {
            let want = "KEEL_BF16_PRODUCTS: expected auto, or one of f32, vdpbf16ps, amx that this processor has";
            run(&args, value).refused(&[want, &format!("found {value}")]);
        }
    }
}

#[test]
fn what_is_no_run_is_refused_alike_everywhere_with_the_runs_there_are() {
    let folder = place();
    let path = folder.path();
    for run in ["runs/tiny-1", "runs/tiny-2", "other/mine"] {
        fs::create_dir_all(path.join(run)).unwrap();
        fs::write(
            path.join(run).join("recipe.toml"),
            tiny_recipe(&["warm-up"]),
        )
        .unwrap();
    }
    fs::create_dir(path.join("empty")).unwrap();
    fs::write(path.join("image.png"), &images()[0].1).unwrap();
    let commands: [&[&str]; 6] = [
        &["eval", "RUN"],
        &["report", "RUN"],
        &["caption", "RUN", "image.png"],
        &["export", "RUN", "--out", "exported"],
        &["train", "--resume", "RUN"],
        &["profile", "--run", "RUN"],
    ];
    let before = everything_in(path);
    for command in commands {
        let with = |run: &str| {
            let args: Vec<&str> = command
                .iter()
                .map(|word| if *word == "RUN" { run } else { word })
                .collect();
            keel(path, &args)
        };
        let expected = "expected the folder of a run (with a recipe.toml) such as ";
        let empty = with("empty").refused(&["run empty: ", expected, "a folder without one"]);
        for run in ["runs/tiny-1", "runs/tiny-2"] {
            assert!(empty.stderr.contains(run), "{empty:#?}");
        }
        with("runs/tiny-11").refused(&[
            "run runs/tiny-11: found nothing there (did you mean runs/tiny-1?)\n",
            expected,
        ]);
        with("other/main").refused(&["run other/main: ", expected, "other/mine"]);
    }
    assert_eq!(everything_in(path), before);
    // Where there are none, none are named.
    let bare = tempfile::tempdir().unwrap();
    keel(bare.path(), &["eval", "mine"]).refused(&[
        "run mine: expected the folder of a run (with a recipe.toml), found nothing there\n",
    ]);
}

#[test]
fn a_folder_of_other_files_is_refused_and_left_as_it_was() {
    let folder = place();
    let path = folder.path();
    train(path, &["--out", "run", "--max-steps", "1"]).fine();
    fs::create_dir(path.join("thesis")).unwrap();
    fs::write(path.join("thesis/chapter.tex"), "\\begin").unwrap();
    let before = everything_in(path);
    let refused = |args: &[&str], out: &str| {
        let said = format!(
            "--out {out}: expected a new or empty folder, found a folder with other files in it ("
        );
        keel(path, &[args, &["--out", out]].concat()).refused(&[&said]);
    };
    let training = [
        "train",
        "--recipe",
        "one.toml",
        "--no-evaluation",
        "--max-steps",
        "1",
    ];
    let exporting = ["export", "run"];
    let comparing = ["ablate", "strategies", "--quick"];
    for out in ["thesis", "/", "."] {
        refused(&training, out);
        refused(&exporting, out);
        refused(&comparing, out);
    }
    // A run is no place for anything else.
    refused(&exporting, "run");
    refused(&comparing, "run");
    assert_eq!(everything_in(path), before);
    for name in ["new", "export", "slash"] {
        fs::create_dir(path.join(name)).unwrap();
    }
    train(path, &["--out", "new", "--max-steps", "1"]).fine();
    keel(path, &["export", "run", "--out", "export"]).fine();
    keel(path, &["export", "run", "--out", "slash/"]).fine();
    assert!(path.join("slash/config.json").exists());
}

#[test]
fn a_plan_that_fails_prints_nothing_of_itself() {
    let folder = place();
    let path = folder.path();
    // The first stages can be planned, the last cannot.
    let budget = ["plan", "--recipe", "tiny", "--memory-budget", "100K"];
    let answer = keel(path, &budget).refused(&["--memory-budget", ", in stage "]);
    assert_eq!(answer.stdout, "");
    let stage = ["plan", "--recipe", "tiny", "--stage", "none"];
    assert_eq!(keel(path, &stage).refused(&["--stage"]).stdout, "");
}

#[test]
fn mistakes_of_the_caller_end_with_2_and_failures_while_running_with_1() {
    let folder = place();
    let path = folder.path();
    let help = keel(path, &["--help"]).fine().stdout;
    for code in ["  0 ", "  1 ", "  2 ", "  130 ", "  141 "] {
        assert!(help.contains(&format!("\n{code}")), "{help}");
    }
    assert!(help.contains("143") && help.contains("129"), "{help}");
    // An option, a setting, a missing file, weights that are none, an image that is none.
    keel(path, &["train", "--nothing"]).code_is(2);
    train(path, &["--set", "stage.warm-up.batch=0"]).code_is(2);
    keel(path, &["plan", "--recipe", "none.toml"]).code_is(2);
    keel(path, &["inspect", "none"]).code_is(2);
    train(path, &["--vision", "."]).code_is(2);
    train(path, &["--out", "run", "--max-steps", "1"]).fine();
    keel(path, &["caption", "run", "one.toml"]).code_is(2);
    // A run that stops itself.
    pairs(path, 40, 20);
    let further = [&["--data", "pairs", "--out", "stopped"], &DRAWS_PAIRS[..]].concat();
    train(path, &further).code_is(1);
}

#[test]
fn quantities_are_told_in_units_that_people_read() {
    let folder = place();
    let further = ["--out", "run", "--set", "stage.warm-up.steps=1"];
    let said = train(folder.path(), &further).fine().stdout;
    let stage = said
        .lines()
        .find(|line| line.starts_with("stage warm-up: "));
    let stage = stage.unwrap_or_else(|| panic!("{said}"));
    for part in [
        " parameters), 1 step of 8 samples, ",
        " MFLOP and ",
        " MiB of activations a step",
    ] {
        assert!(stage.contains(part), "{part} in {stage}");
    }
    let [_, trained, _] = stage.splitn(3, ['(', ')']).collect::<Vec<_>>()[..] else {
        panic!("{stage}");
    };
    assert!(trained.contains(','), "thousands stand apart: {trained}");
    let plan = keel(
        folder.path(),
        &["plan", "--recipe", "sailvit-huge", "--device", "cuda"],
    );
    let plan = plan.fine().stdout;
    assert!(plan.contains(" PFLOP a step\n"), "{plan}");
    for text in [&said, &plan] {
        assert!(!text.contains(" 0.0 "), "{text}");
    }
}

#[test]
fn every_command_says_what_its_options_do() {
    let folder = place();
    for command in ["train", "plan", "eval", "caption"] {
        let help = keel(folder.path(), &[command, "--help"]).fine().stdout;
        let mut lines = help.lines().peekable();
        let mut options = 0;
        while let Some(line) = lines.next() {
            // "- auto: …" is a value of the option above, not an option.
            if !line.trim_start().starts_with('-') || line.trim_start().starts_with("- ") {
                continue;
            }
            options += 1;
            // The description stands beside the option or on the next line.
            let beside = line
                .trim_start()
                .split("  ")
                .skip(1)
                .any(|text| !text.trim().is_empty());
            let below = lines
                .peek()
                .is_some_and(|next| !next.trim().is_empty() && !next.trim().starts_with('-'));
            assert!(beside || below, "{command}: {line}");
        }
        assert!(options >= 3, "{help}");
    }
    let all = keel(folder.path(), &["--help"]).fine().stdout;
    for command in ["train", "plan", "eval", "caption"] {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
    }
}

#[test]
fn units_change_before_a_number_rounds_to_nothing_or_to_five_digits() {
    for (count, text) in [
        (0.0, "0 FLOP"),
        (999.0, "999 FLOP"),
        (1e3, "1.0 kFLOP"),
        (46.0e6, "46.0 MFLOP"),
        (999.94e9, "999.9 GFLOP"),
        (999.96e9, "1.0 TFLOP"),
        (40_567_078.9e9, "40.6 PFLOP"),
        (2e24, "2000.0 ZFLOP"),
    ] {
        assert_eq!(flops(count), text);
    }
    assert_eq!(bytes(1023), "1023 B");
    assert_eq!(bytes(5 << 29), "2.5 GiB");
    assert_eq!(grouped(309_984_256), "309,984,256");
    assert_eq!(grouped(999), "999");
    assert_eq!(counted(1, "step"), "1 step");
    assert_eq!(counted(0, "step"), "0 steps");
    assert_eq!(counted(60_033, "parameter"), "60,033 parameters");
    assert_eq!(duration(5), "5 s");
    assert_eq!(duration(446), "7 min 26 s");
}

#[test]
fn help_groups_options_under_headings() {
    let folder = place();
    let help = keel(folder.path(), &["train", "--help"]).fine().stdout;
    let places = [
        ("Run", "--recipe"),
        ("Data", "--data"),
        ("Weights", "--vision"),
        ("Memory", "--memory-limit"),
        ("Safety", "--save-every"),
        ("Evaluation", "--no-evaluation"),
        ("Expert", "--recheck-every"),
    ];
    let mut from = 0;
    for (heading, option) in places {
        let at = help.find(&format!("\n{heading}:\n"));
        let at = at.unwrap_or_else(|| panic!("no {heading} in {help}"));
        assert!(at > from, "{heading} out of order in {help}");
        let next = help[at + 1..].find(":\n\n").unwrap_or(0);
        assert!(help[at + next..].contains(option), "{option} in {help}");
        from = at;
    }
    // Only help itself has no heading.
    let plain = help.split("\nOptions:\n").nth(1).unwrap();
    let plain = plain.split("\n\nRun:").next().unwrap();
    assert_eq!(plain.matches("--").count(), 1, "{plain}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = place();
    let path = folder.path();
    let help = keel(path, &["--help"]).fine().stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() >= 14, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = keel(path, &["completions", shell]).fine().stdout;
        for word in commands.iter().chain(&["memory-limit"]) {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    keel(path, &["completions", "csh"]).misunderstood(&["expected one of bash, "]);
    keel(path, &["man", "pages/man1"]).fine();
    for command in &commands {
        let page = path.join(format!("pages/man1/keel-{command}.1"));
        let page = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{command}: {e}"));
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let first = fs::read_to_string(path.join("pages/man1/keel.1")).unwrap();
    assert!(first.contains("Exit codes"), "{first}");
}
