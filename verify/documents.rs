//! Documentation is held to the code: paths, links, commands, recipe keys, environment variables and tests that pages name
//! exist, and the commands that the README and the guide mark for it run as they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use keel::train::{BUILT_IN, Recipe};

/// The line before a block of commands that [`run_marked_blocks`] executes.
const RUN_MARK: &str = "<!-- run -->";

/// The folder that holds the README, wherever this package lies below it.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|folder| folder.join("CONTRIBUTING.md").is_file())
        .expect("the tests are part of the repository")
        .to_owned()
}

/// Every file of the checkout, relative to its root, without what builds and runs leave behind.
fn checkout() -> Vec<String> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is part of the checkout") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_root = folder == root;
            if path.is_dir() {
                let is_left_behind = name == "__pycache__"
                    || is_root && ["target", "runs", ".git"].contains(&&*name);
                if !is_left_behind {
                    folders.push(path);
                }
            } else {
                let path = path.strip_prefix(&root).expect("below the root");
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|problem| panic!("{path}: {problem}"))
}

/// The pages that people read.
fn pages() -> Vec<String> {
    let is_page =
        |path: &String| path.ends_with(".md") && (path.starts_with("docs/") || !path.contains('/'));
    checkout().into_iter().filter(is_page).collect()
}

/// The part of a file that is written for readers: pages and Python scripts as they are, comments of everything else. Code
/// itself is left out because it also names files that it is about to write.
fn prose(path: &str) -> Option<String> {
    let (_, ending) = path.rsplit_once('.').unwrap_or((path, ""));
    let comment = match ending {
        "md" | "py" => return Some(read(path)),
        "rs" | "cu" | "cuh" | "cpp" | "h" => "//",
        "toml" | "sh" => "#",
        _ if path == ".ci/run" => "#",
        _ => return None,
    };
    let text = read(path);
    let comments = text.lines().map(|line| match line.find(comment) {
        Some(start) => &line[start..],
        None => "",
    });
    Some(comments.collect::<Vec<_>>().join("\n"))
}

/// Whether a path or a part of it fits a pattern in which `*`, `<name>` and `{name}` stand for anything but a slash.
fn fits(path: &str, pattern: &str) -> bool {
    let Some(hole) = pattern.find(['*', '<', '{']) else {
        return path == pattern;
    };
    let Some(rest) = path.strip_prefix(&pattern[..hole]) else {
        return false;
    };
    let after = match pattern.as_bytes()[hole] {
        b'<' => pattern[hole..]
            .find('>')
            .map_or(pattern.len(), |end| hole + end + 1),
        b'{' => pattern[hole..]
            .find('}')
            .map_or(pattern.len(), |end| hole + end + 1),
        _ => hole + 1,
    };
    let reach = rest.find('/').unwrap_or(rest.len());
    (0..=reach)
        .filter(|&taken| rest.is_char_boundary(taken))
        .any(|taken| fits(&rest[taken..], &pattern[after..]))
}

/// What could be a path: the longest runs of characters that paths are made of.
fn words_like_paths(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || "_-./*<>{}$~:".contains(c)))
        .map(|word| {
            word.trim_start_matches("./")
                .trim_end_matches(['.', ':', '/', '-'])
        })
}

#[test]
fn every_path_that_documentation_names_exists() {
    let files = checkout();
    let mut paths: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for file in &files {
        for (slash, _) in file.match_indices('/') {
            paths.insert(&file[..slash]);
        }
    }
    let folders: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| Some(file.split_once('/')?.0))
        .collect();
    let names: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.rsplit('/').next())
        .collect();
    let mut seen = 0;
    let mut missing = Vec::new();
    for file in &files {
        for (number, line) in prose(file).unwrap_or_default().lines().enumerate() {
            for word in words_like_paths(line) {
                // Pages below docs/ link upwards.
                let path = word.trim_start_matches("../");
                let is_there = match path.split_once('/') {
                    Some((first, _)) if folders.contains(first) => {
                        paths.contains(path) || paths.iter().any(|known| fits(known, path))
                    }
                    Some(_) => continue,
                    // A kernel's file is often named without its folder.
                    None if path.ends_with(".cu") || path.ends_with(".cuh") => {
                        path.starts_with(['.', '*', '<', '{']) || names.contains(path)
                    }
                    None => continue,
                };
                seen += 1;
                if !is_there {
                    missing.push(format!("{file}:{}: {word}", number + 1));
                }
            }
        }
    }
    assert!(
        seen >= 200,
        "only {seen} paths were found: they are looked for in the wrong way"
    );
    assert!(
        missing.is_empty(),
        "documentation names what is not there:\n{}",
        missing.join("\n")
    );
}

/// The anchor that a heading gets: lower case, words joined by hyphens, other characters dropped.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The lines of a page that are not in a block of code.
fn outside_code(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let is_outside = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    };
    text.lines().filter(is_outside).collect()
}

#[test]
fn every_link_between_pages_resolves() {
    let mut seen = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for line in outside_code(&text) {
            for target in line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next())
            {
                if target.contains("://") {
                    continue;
                }
                seen += 1;
                let (file, place) = target.split_once('#').unwrap_or((target, ""));
                let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
                let path = match file {
                    "" => root().join(&page),
                    file => root().join(folder).join(file),
                };
                let resolves = match (path.exists(), place) {
                    (false, _) => false,
                    (true, "") => true,
                    (true, place) => {
                        let text = fs::read_to_string(&path).expect("a page is text");
                        outside_code(&text)
                            .iter()
                            .filter(|line| line.starts_with('#'))
                            .any(|line| anchor(line.trim_start_matches('#')) == place)
                    }
                };
                if !resolves {
                    broken.push(format!("{page}: {target}"));
                }
            }
        }
    }
    assert!(seen >= 50, "only {seen} links were found");
    assert!(
        broken.is_empty(),
        "links that lead nowhere:\n{}",
        broken.join("\n")
    );
}

/// A command line as a page shows it.
struct Shown {
    /// The page and the line.
    at: String,
    /// The words after `keel`.
    words: Vec<String>,
    /// Whether it stands in running text, where it may be the beginning of a command alone.
    is_inline: bool,
}

/// The words of a command line as a shell splits them, up to what belongs to the shell. Nothing is expanded.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '&' | ';') => break,
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The words after the program's name, of a line that starts it.
fn after_program(line: &str) -> Option<&str> {
    ["keel ", "cargo run --release -- "]
        .iter()
        .find_map(|program| line.trim().strip_prefix(program))
}

/// Every command line of the pages and of the recipes' heads.
fn shown_commands() -> Vec<Shown> {
    let mut shown = Vec::new();
    let recipes = checkout()
        .into_iter()
        .filter(|path| path.starts_with("recipes/"));
    for page in pages().into_iter().chain(recipes) {
        let text = prose(&page).unwrap_or_default().replace("\\\n", " ");
        for (number, line) in text.lines().enumerate() {
            let at = format!("{page}:{}", number + 1);
            let mut add = |command: &str, is_inline: bool| {
                shown.push(Shown {
                    at: at.clone(),
                    words: shell_words(command),
                    is_inline,
                });
            };
            if let Some(command) = after_program(line.trim_start_matches('#')) {
                add(command, false);
            } else {
                line.split('`')
                    .skip(1)
                    .step_by(2)
                    .filter_map(after_program)
                    .for_each(|c| add(c, true));
            }
        }
    }
    shown
}

fn keel(words: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keel"))
        .args(words)
        .arg("--help")
        .output()
        .expect("the program starts")
}

#[test]
fn every_command_that_documentation_shows_parses() {
    let mut wrong = Vec::new();
    // The verdict on each command line: many pages show the same one.
    let mut known: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let shown = shown_commands();
    assert!(
        shown.len() >= 60,
        "only {} command lines were found",
        shown.len()
    );
    for Shown {
        at,
        words,
        is_inline,
    } in shown
    {
        // `keel COMMAND --help` speaks of any command.
        if words
            .first()
            .is_none_or(|first| first.chars().all(|c| c.is_ascii_uppercase()))
        {
            continue;
        }
        let problem = known.entry(words.clone()).or_insert_with(|| {
            // Running text may end with an option and without its value; then only the option itself can be checked.
            let dangling = words
                .last()
                .filter(|last| is_inline && last.starts_with("--"));
            let whole = words.len() - usize::from(dangling.is_some());
            // Clap reads everything before --help first, so a wrong word fails and a right line does nothing.
            let output = keel(&words[..whole]);
            let help = String::from_utf8_lossy(&output.stdout);
            let has = |option: &String| {
                help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                    .any(|word| word == option)
            };
            match (output.status.success(), dangling) {
                (false, _) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
                (true, Some(option)) if !has(option) => Some(format!("there is no {option}")),
                (true, _) => None,
            }
        });
        if let Some(problem) = problem {
            wrong.push(format!(
                "{at}: keel {}\n  {}",
                words.join(" "),
                problem.trim()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "commands that do not parse:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_setting_that_documentation_shows_is_a_key() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for Shown { at, words, .. } in shown_commands() {
        let values_of = |option: &str| {
            let pairs = words.windows(2).filter(move |pair| pair[0] == option);
            pairs.map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        let sets = values_of("--set");
        if sets.is_empty() {
            continue;
        }
        seen += sets.len();
        // Files such as my.toml do not exist; pages give them the stages of the default recipe.
        let named = values_of("--recipe").into_iter().next().unwrap_or_default();
        let is_built_in = BUILT_IN.iter().any(|(name, _)| *name == named);
        let recipe = if is_built_in { &*named } else { "emoji" };
        if let Err(problem) = Recipe::load(recipe, &sets) {
            wrong.push(format!("{at}: {problem}"));
        }
    }
    assert!(seen >= 6, "only {seen} settings were found");
    assert!(
        wrong.is_empty(),
        "settings that are refused:\n{}",
        wrong.join("\n")
    );
}

/// Names of environment variables in quotes on a line of Rust, C++ or Python that reads or sets one.
fn named_in_code(line: &str) -> impl Iterator<Item = &str> {
    let marks = ["env", "var_os", "environ"];
    let is_about_environment = marks.iter().any(|mark| line.contains(mark));
    line.split('"').skip(1).step_by(2).filter(move |text| {
        let is_name = text.len() > 2
            && !text.ends_with('_')
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        // A name that is handed on through a constant or a list is known by how it begins.
        let handed_on = ["KEEL_", "NVCC", "CUDA_HOME", "CUDA_PATH"];
        is_name && (is_about_environment || handed_on.iter().any(|start| text.starts_with(start)))
    })
}

#[test]
fn every_environment_variable_is_on_its_page() {
    let page = read("docs/environment.md");
    let listed: BTreeSet<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.len() > 2 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
        .collect();
    let mut read_somewhere = BTreeSet::new();
    let mut everything = String::new();
    for path in checkout().iter().filter(|path| !path.ends_with(".md")) {
        let Ok(text) = fs::read_to_string(root().join(path)) else {
            continue;
        };
        let is_code = [".rs", ".py", ".cpp", ".h"]
            .iter()
            .any(|ending| path.ends_with(ending));
        for line in text.lines() {
            if is_code {
                read_somewhere
                    .extend(named_in_code(line).map(|name| (name.to_owned(), path.clone())));
            } else if let Some(export) = line.trim().strip_prefix("export ") {
                let name = export.split('=').next().unwrap_or(export);
                read_somewhere.insert((name.to_owned(), path.clone()));
            }
        }
        everything += &text;
    }
    let set_by_cargo = read(".cargo/config.toml");
    let table = set_by_cargo
        .split("[env]")
        .nth(1)
        .expect("cargo's settings have a table of variables");
    for name in table
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
    {
        if !name.starts_with('#') {
            read_somewhere.insert((name.to_owned(), ".cargo/config.toml".to_owned()));
        }
    }
    let missing: Vec<String> = read_somewhere
        .iter()
        .filter(|(name, _)| !listed.contains(name.as_str()))
        .map(|(name, path)| format!("{name} ({path})"))
        .collect();
    assert!(read_somewhere.len() >= 15, "only {read_somewhere:?}");
    assert!(
        missing.is_empty(),
        "docs/environment.md lacks {}",
        missing.join(", ")
    );
    // These are read by cargo and the compiler, so no file here need mention them.
    let read_by_cargo = ["CXX", "MPICC", "RUSTC_BOOTSTRAP"];
    let is_variable =
        |name: &&&str| name.chars().all(|c| !c.is_ascii_lowercase()) && name.len() > 3;
    let stale: Vec<&&str> = listed
        .iter()
        .filter(is_variable)
        .filter(|name| !read_by_cargo.contains(name) && !everything.contains(**name))
        .collect();
    assert!(
        stale.is_empty(),
        "docs/environment.md lists what nothing reads: {stale:?}"
    );
}

#[test]
fn every_test_that_documentation_names_exists() {
    let page = read("docs/reliability.md");
    for line in page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| fault |"))
    {
        assert!(line.contains("::"), "no test is named in {line}");
    }
    let mut seen = 0;
    let mut missing = Vec::new();
    for page in pages()
        .iter()
        .filter(|page| !page.starts_with("docs/reference/"))
    {
        let text = read(page);
        // Tests and their modules are lower case; constants and methods of types are not tests.
        let names = text.split('`').skip(1).step_by(2).filter(|name| {
            name.contains("::")
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
        });
        for name in names {
            seen += 1;
            let (module, test) = name.rsplit_once("::").expect("it has colons");
            let file = root().join(format!("verify/{}.rs", module.replace("::", "/")));
            let text = fs::read_to_string(file).unwrap_or_default();
            if !text.contains(&format!("#[test]\nfn {test}() {{")) {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(seen >= 40, "only {seen} tests are named");
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

/// What the table of packages on the architecture page calls an import of every package.
const EVERY_PACKAGE: &str = "all of them";

/// The packages that a `Cargo.toml` lists under `[dependencies]`, of this repository alone and without `keel-`.
fn imports_of(manifest: &str) -> BTreeSet<String> {
    let manifest = read(manifest);
    let (_, dependencies) = manifest
        .split_once("\n[dependencies]\n")
        .expect("every package stands on something, if only on other people's");
    dependencies
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| {
            Some(
                line.strip_prefix("keel-")?
                    .split(['.', ' '])
                    .next()?
                    .to_owned(),
            )
        })
        .collect()
}

#[test]
fn the_architecture_page_lists_every_package_with_what_it_imports() {
    let page = read("docs/architecture.md");
    let rows: BTreeMap<&str, Vec<&str>> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `src"))
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.get(1).is_some_and(|name| name.starts_with("keel")))
        .map(|cells| (cells[0].trim_matches(['/', '`']), cells[1..].to_vec()))
        .collect();
    let packages: BTreeSet<String> = checkout()
        .iter()
        .filter_map(|path| path.strip_prefix("src/")?.strip_suffix("/Cargo.toml"))
        .map(str::to_owned)
        .collect();
    let listed: BTreeSet<String> = rows.keys().map(|name| (*name).to_owned()).collect();
    // The program itself lies in src with nothing after it.
    let expected: BTreeSet<String> = packages.iter().cloned().chain([String::new()]).collect();
    assert_eq!(listed, expected, "the rows of the table of packages");
    for (folder, cells) in rows {
        let (package, manifest) = match folder {
            "" => ("keel".to_owned(), "Cargo.toml".to_owned()),
            folder => (format!("keel-{folder}"), format!("src/{folder}/Cargo.toml")),
        };
        assert_eq!(cells[0], package, "the package of src/{folder}");
        let others = packages.iter().filter(|other| *other != folder);
        let said: BTreeSet<String> = match cells[2] {
            EVERY_PACKAGE if folder.is_empty() => packages.clone(),
            EVERY_PACKAGE => others.cloned().collect(),
            "–" => BTreeSet::new(),
            list => list.split(", ").map(str::to_owned).collect(),
        };
        assert_eq!(said, imports_of(&manifest), "what {package} imports");
    }
}

#[test]
fn every_type_that_the_architecture_page_names_exists() {
    let mut defined = BTreeSet::new();
    for path in checkout().iter().filter(|path| path.ends_with(".rs")) {
        for line in read(path).lines() {
            let mut words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            while let Some(word) = words.next() {
                if ["trait", "struct", "enum"].contains(&word) {
                    defined.extend(words.next().map(str::to_owned));
                }
            }
        }
    }
    let page = read("docs/architecture.md");
    let names: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric()))
        .collect();
    assert!(names.len() >= 6, "only {names:?} are named");
    let missing: Vec<&&str> = names
        .iter()
        .filter(|name| !defined.contains(**name))
        .collect();
    assert!(missing.is_empty(), "there are no {missing:?}");
}

/// Words that the glossary has replaced, and what it says instead. Assembled, so that whoever renames one everywhere does not
/// rename it here.
const RETIRED: [(&str, &str); 8] = [
    (concat!("pic", "ture"), "image"),
    (concat!("token", "iser"), "tokenizer"),
    (concat!("gues", "ser"), "blind baseline"),
    (concat!("a con", "trast "), "a contrastive loss"),
    (concat!("bf16 ", "twin"), "bf16 copy"),
    (concat!("gath", "ered gradients"), "accumulated gradients"),
    ("of late", "recent"),
    ("anew", "again"),
];

#[test]
fn pages_use_the_words_of_the_glossary() {
    let mut found = Vec::new();
    // The changelog names old words on purpose, and the kernels' page is made from their headers.
    let is_ours = |page: &String| page != "CHANGELOG.md" && !page.starts_with("docs/reference/");
    for page in pages().into_iter().filter(is_ours) {
        let text = read(&page);
        for line in outside_code(&text) {
            // Names in code spans are the code's.
            let prose: String = line.split('`').step_by(2).collect();
            let prose = prose.to_lowercase();
            for (retired, word) in RETIRED {
                if prose.contains(retired) {
                    found.push(format!("{page}: {retired:?}, say {word:?}: {line}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_readers_of_documentation_read_what_is_there() {
    assert!(fits("src/ops/norm/mod.rs", "src/ops/<op>/mod.rs"));
    assert!(fits("cuda/norm.cu", "cuda/{stem}.cu"));
    assert!(fits(
        "verify/goldens/op_adamw.safetensors",
        "verify/goldens/op_*.safetensors"
    ));
    assert!(!fits("src/ops/norm/mod.rs", "src/<op>/mod.rs"));
    assert!(!fits("cuda/norm.cuh", "cuda/*.cu"));
    let paths: Vec<&str> =
        words_like_paths("see [cuda/](../cuda), `cuda/norm.cu`. And /usr/cuda").collect();
    for path in ["cuda", "../cuda", "cuda/norm.cu", "/usr/cuda"] {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    let line = "train --data 'pairs-{0..9}.tar' --question \"what is this?\" x#y  # why | head";
    let words = shell_words(line);
    let expected = [
        "train",
        "--data",
        "pairs-{0..9}.tar",
        "--question",
        "what is this?",
        "x#y",
    ];
    assert_eq!(words, expected);
    assert_eq!(shell_words("plan | head"), ["plan"]);
    assert_eq!(
        anchor(" Where a step's time goes"),
        "where-a-steps-time-goes"
    );
    let names: Vec<&str> =
        named_in_code("std::env::var(\"PATH\").is_ok() || say(\"No\")").collect();
    assert_eq!(names, ["PATH"]);
}

/// The blocks of a page that are marked to be run, in order, as one script.
fn marked_script(page: &str) -> String {
    let text = read(page);
    let mut script = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() != RUN_MARK {
            continue;
        }
        let fence = lines.next().map(|(_, line)| line.trim());
        assert_eq!(
            fence,
            Some("```sh"),
            "{page}:{}: a block of commands follows the mark",
            number + 1
        );
        for (_, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
            script += line;
            script.push('\n');
        }
    }
    script
}

/// Runs a page's marked blocks in a temporary folder that looks like a fresh clone, with the program on the path.
fn run_marked_blocks(page: &str) {
    let script = marked_script(page);
    let commands = script
        .lines()
        .filter(|line| line.starts_with("keel "))
        .count();
    assert!(commands >= 6, "{page} marks {commands} commands");
    let clone = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(root()).expect("the checkout can be read") {
        let entry = entry.expect("a readable entry");
        let name = entry.file_name();
        if !["target", "runs", ".git"].contains(&&*name.to_string_lossy()) {
            symlink(entry.path(), clone.path().join(name)).expect("the folder is empty");
        }
    }
    let bin = tempfile::tempdir().expect("a temporary folder");
    symlink(env!("CARGO_BIN_EXE_keel"), bin.path().join("keel")).expect("the folder is empty");
    let path = std::env::var("PATH").unwrap_or_default();
    // With -x the last line of the error stream names the command that failed.
    let output = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &script])
        .current_dir(clone.path())
        .env("PATH", format!("{}:{path}", bin.path().display()))
        .output()
        .expect("bash starts");
    assert!(
        output.status.success(),
        "{page}: the commands ended with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_commands_of_the_readme_run() {
    run_marked_blocks("README.md");
}

#[test]
fn the_commands_of_the_guide_run() {
    run_marked_blocks("docs/guide.md");
}
