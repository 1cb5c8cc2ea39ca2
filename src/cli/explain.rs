//! What is said of a command line that cannot be understood: the near miss first, the list of what there is on the next line;
//! and for options that other trainers have, the option or the setting that does it here.

use std::error::Error as _;
use std::iter::successors;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};

use super::options::DEFAULT_RECIPE;
use super::values::Expected;
use keel_base::error::{Error, Found, near_miss, with_near_miss};
use keel_train::Recipe;

/// What does here what an option does elsewhere.
enum Answer {
    /// A setting of a stage, with a value to show where none was given.
    Setting(&'static str, &'static str),
    /// An option, with a placeholder for its value; none for a switch.
    Option(&'static str, &'static str),
    /// A sentence, for commands that have the option in it.
    Sentence(&'static str, &'static str),
}

use Answer::{Option as Opt, Sentence, Setting};

/// Options of other trainers and former ones of ours. Those that a command has itself never come here.
const KNOWN_ELSEWHERE: &[(&[&str], Answer)] = &[
    (
        &["--lr", "--learning-rate", "--learning_rate", "--base-lr"],
        Setting("learning_rate", "1e-4"),
    ),
    (
        &[
            "--batch-size",
            "--batch_size",
            "--batch",
            "-b",
            "--per_device_train_batch_size",
        ],
        Setting("batch_size", "64"),
    ),
    (
        &["--micro-batch", "--micro-batch-size", "--micro_batch_size"],
        Setting("micro_batch_size", "8"),
    ),
    (
        &["--epochs", "--num-epochs", "--num_train_epochs"],
        Setting("epochs", "1.0"),
    ),
    (
        &["--steps", "--num-steps", "--max_steps"],
        Setting("steps", "1000"),
    ),
    (
        &["--weight-decay", "--weight_decay", "--wd"],
        Setting("weight_decay", "0.05"),
    ),
    (
        &[
            "--warmup",
            "--warm-up",
            "--warmup-ratio",
            "--warmup_ratio",
            "--warmup-steps",
            "--warmup_steps",
        ],
        Setting("warmup_ratio", "0.03"),
    ),
    (
        &[
            "--clip",
            "--grad-clip",
            "--max-grad-norm",
            "--max_grad_norm",
        ],
        Setting("max_grad_norm", "1.0"),
    ),
    (
        &[
            "--max-length",
            "--max-tokens",
            "--max-seq-len",
            "--model_max_length",
        ],
        Setting("max_tokens", "512"),
    ),
    (
        &["--scheduler", "--lr-scheduler", "--lr_scheduler_type"],
        Setting("schedule", "cosine"),
    ),
    (
        &[
            "-o",
            "--output",
            "--output-dir",
            "--output_dir",
            "--out-dir",
        ],
        Opt("--out", "DIR"),
    ),
    (&["-c", "--config"], Opt("--recipe", "NAME|FILE")),
    (
        &[
            "--resume-from",
            "--checkpoint",
            "--ckpt",
            "--resume_from_checkpoint",
        ],
        Opt("--resume", "RUN"),
    ),
    (
        &["--dataset", "--train-data", "--data-path", "--data_path"],
        Opt("--data", "SPEC"),
    ),
    (
        &["-j", "--workers", "--num-workers", "--num_workers"],
        Opt("--threads", "N"),
    ),
    (&["--gpu", "--gpus", "--cuda"], Opt("--device cuda", "")),
    (&["--cpu"], Opt("--device cpu", "")),
    (&["--bf16", "--fp16", "--amp"], Opt("--precision bf16", "")),
    (
        &[
            "--model",
            "--model-path",
            "--model_name_or_path",
            "--vision-tower",
        ],
        Sentence(
            "--vision",
            "weights to start from are --vision DIR and --language DIR (Hugging Face folders); the size of a model that starts \
             from nothing is in the recipe, for example --set model.vision.depth=12",
        ),
    ),
    (
        &["--model", "--model-path", "--checkpoint", "--ckpt", "--run"],
        Sentence(
            "<RUN>",
            "the folder of the run, or one of its checkpoints, stands by itself, without an option",
        ),
    ),
    (&["--keep-pictures"], Opt("--image-cache", "BYTES")),
    (&["--evaluation-pictures"], Opt("--evaluation-images", "N")),
    (&["--pictures"], Opt("--images", "N")),
];

/// Commands of other trainers, and what they are called here.
const COMMANDS_ELSEWHERE: &[(&[&str], &str)] = &[
    (&["resume", "continue"], "train --resume"),
    (
        &["fit", "finetune", "fine-tune", "pretrain", "run"],
        "train",
    ),
    (
        &["evaluate", "test", "validate", "bench", "benchmark"],
        "eval",
    ),
    (&["ask", "chat", "generate", "infer", "predict"], "caption"),
    (&["convert", "save"], "export"),
    (&["info", "show"], "inspect"),
    (&["memory", "estimate"], "plan"),
    (&["completion"], "completions"),
];

/// Former values of options: option, value, what it is called now.
const FORMER_VALUES: &[(&str, &str, &str)] = &[("--part", "whole", "model")];

/// What is wrong with the command line `args`, without the program's name, of which `problem` is clap's account; where to read
/// more stands on the last line. `None` where clap says it best.
pub(super) fn explain(problem: &clap::Error, top: &Command, args: &[String]) -> Option<String> {
    let commands = commands(top, args);
    let command = *commands.last()?;
    let names: Vec<&str> = commands.iter().map(|command| command.get_name()).collect();
    let names = names.join(" ");
    let text = match problem.kind() {
        ErrorKind::UnknownArgument => unknown_option(
            &names,
            command,
            context(problem, ContextKind::InvalidArg)?,
            args,
        ),
        ErrorKind::InvalidSubcommand => unknown_command(
            &names,
            command,
            context(problem, ContextKind::InvalidSubcommand)?,
            args,
        ),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => refused_value(problem)?,
        _ => return None,
    };
    Some(format!(
        "{text}\n\nFor more information, try '{names} --help'."
    ))
}

/// The commands that the arguments lead through, from the program down. Neither has options of its own before the next.
fn commands<'a>(top: &'a Command, args: &[String]) -> Vec<&'a Command> {
    let mut rest = args.iter();
    successors(Some(top), |command| {
        command.find_subcommand(rest.next()?.as_str())
    })
    .collect()
}

fn context(problem: &clap::Error, kind: ContextKind) -> Option<&str> {
    match problem.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

/// The name of an option without its value.
fn name_of(arg: &str) -> &str {
    arg.split(['=', ' ']).next().unwrap_or(arg)
}

/// The value given to an option: behind the equals sign, or the next argument.
fn value_of<'a>(name: &str, args: &'a [String]) -> Option<&'a str> {
    let index = args.iter().position(|arg| name_of(arg) == name)?;
    match args[index].split_once('=') {
        Some((_, value)) => Some(value),
        None => args.get(index + 1).map(String::as_str),
    }
    .filter(|value| !value.is_empty() && !value.starts_with("--"))
}

/// Whether a command has the option, or an argument of that name that stands by itself.
fn has(command: &Command, name: &str) -> bool {
    command.get_arguments().any(|arg| match arg.get_long() {
        Some(long) => name.strip_prefix("--") == Some(long),
        None => name == format!("<{}>", arg.get_id().as_str().to_uppercase()),
    })
}

fn unknown_option(names: &str, command: &Command, arg: &str, args: &[String]) -> String {
    let name = name_of(arg);
    let answers = KNOWN_ELSEWHERE
        .iter()
        .filter(|(known, _)| known.contains(&name));
    for (_, answer) in answers {
        let value = value_of(name, args);
        match answer {
            Setting(key, example) if has(command, "--set") => {
                return explain_setting(name, key, value.unwrap_or(example), args);
            }
            Opt(option, placeholder) if has(command, name_of(option)) => {
                // A switch has no value; what follows it is something else.
                let value = if placeholder.is_empty() {
                    ""
                } else {
                    value.unwrap_or(placeholder)
                };
                return format!(
                    "{name}: here it is {}",
                    format!("{option} {value}").trim_end()
                );
            }
            Sentence(option, sentence) if has(command, option) => {
                return format!("{name}: {sentence}");
            }
            _ => {}
        }
    }
    let longs: Vec<&str> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(clap::Arg::get_long)
        .collect();
    let is_option = name.starts_with('-');
    let kind = if is_option {
        "option"
    } else {
        "further argument"
    };
    // Dashes are alike in all of them, and would make all of them near.
    let near = near_miss(name.trim_start_matches('-'), &longs).filter(|_| is_option);
    let near = near.map_or(String::new(), |near| format!(" (did you mean --{near}?)"));
    let mut text = format!("{names} has no {kind} {name}{near}");
    if !longs.is_empty() {
        text += &format!("\n  its options: --{}", longs.join(", --"));
    }
    text
}

/// A setting of every stage: which stages there are is a matter of the recipe.
fn explain_setting(name: &str, key: &str, value: &str, args: &[String]) -> String {
    let text = format!(
        "{name}: each stage has its own, set by --set stage.NAME.{key}={value} or in the recipe's file"
    );
    let recipe = value_of("--recipe", args).unwrap_or(DEFAULT_RECIPE);
    // A recipe that cannot be read is another mistake, for another day.
    match Recipe::load(recipe, &[]) {
        Ok(loaded) => {
            let stages: Vec<&str> = loaded.stages.iter().map(|s| s.name.as_str()).collect();
            format!("{text}\n  stages of {recipe}: {}", stages.join(", "))
        }
        Err(_) => text,
    }
}

fn unknown_command(names: &str, command: &Command, given: &str, args: &[String]) -> String {
    let known: Vec<&str> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(Command::get_name)
        .collect();
    let list = format!("\n  its commands: {}", known.join(", "));
    let elsewhere = COMMANDS_ELSEWHERE
        .iter()
        .find(|(there, here)| there.contains(&given) && known.contains(&name_of(here)));
    if let Some((_, here)) = elsewhere {
        let rest = args.iter().skip_while(|arg| *arg != given).skip(1);
        let rest: Vec<&str> = rest.map(String::as_str).collect();
        let full = format!("{names} {here} {}", rest.join(" "));
        return format!(
            "{names} has no command {given}: here it is {}{list}",
            full.trim_end()
        );
    }
    match near_miss(given, &known) {
        Some(near) => format!("{names} has no command {given} (did you mean {near}?){list}"),
        None => format!("{names} has no command {given}{list}"),
    }
}

/// In the form that every setting has.
fn refused_value(problem: &clap::Error) -> Option<String> {
    // `--device <DEVICE>`, or `<SPEC>` for an argument without an option.
    let name = name_of(context(problem, ContextKind::InvalidArg)?);
    let value = context(problem, ContextKind::InvalidValue)?;
    if value.is_empty() {
        return None;
    }
    let former = FORMER_VALUES
        .iter()
        .find(|(option, former, _)| *option == name && *former == value);
    if let Some((_, _, now)) = former {
        return Some(format!("{name} {value} is now {name} {now}"));
    }
    let refusal = if let Some(ContextValue::Strings(known)) = problem.get(ContextKind::ValidValue) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let want = format!("one of {}", known.join(", "));
        Error::setting(name, want, with_near_miss(value, &known))
    } else {
        let expected = problem.source()?.downcast_ref::<Expected>()?;
        Error::setting(
            name,
            &expected.want,
            Found::near(value, expected.near.as_ref()),
        )
    };
    Some(refusal.to_string())
}

/// Whether an option takes a value, and so may be given a negative number to be refused by name.
pub(super) fn takes_value(arg: &clap::Arg) -> bool {
    !arg.is_positional() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}
