//! Recipes: built-in ones hold, every mistake is refused in one sentence that names file, line, key and a near miss.

mod patterns;
mod reference;
mod renamed;
mod settings;

use keel::data::chat::ChatTokenizer;
use keel::train::{BUILT_IN, Recipe, Stage, compile_step};

use crate::command::is_one_sentence;

/// The smallest built-in recipe, to be spoilt.
fn tiny() -> &'static str {
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "tiny").unwrap();
    text
}

/// The tiny recipe with the first `from` after `after` replaced, and the line, from 1, on which that stands.
fn edited(after: &str, from: &str, to: &str) -> (String, usize) {
    let text = tiny();
    let start = text.find(after).expect("a place in the tiny recipe");
    let place = start + text[start..].find(from).expect("a text after that place");
    let changed = format!("{}{to}{}", &text[..place], &text[place + from.len()..]);
    (changed, 1 + text[..place].matches('\n').count())
}

fn parse(text: &str, sets: &[&str]) -> Result<Recipe, String> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse("my.toml", text, &sets).map_err(|problem| problem.to_string())
}

/// Asserts that an edit is refused at its own line, in one line of text with all of `parts` in it.
#[track_caller]
fn refused_at_its_line(after: &str, from: &str, to: &str, parts: &[&str]) {
    let (text, line) = edited(after, from, to);
    let problem = parse(&text, &[]).expect_err("the edit must be refused");
    let place = format!("my.toml, line {line}: ");
    assert!(
        problem.starts_with(&place),
        "expected {place}… in: {problem}"
    );
    for part in parts {
        assert!(problem.contains(part), "expected {part} in: {problem}");
    }
    assert!(is_one_sentence(&problem), "more than one: {problem}");
}

#[track_caller]
fn refused_set(set: &str, parts: &[&str]) {
    let problem = parse(tiny(), &[set]).expect_err("the setting must be refused");
    assert!(problem.contains(&format!("--set {set}")), "{problem}");
    for part in parts {
        assert!(problem.contains(part), "expected {part} in: {problem}");
    }
    assert!(is_one_sentence(&problem), "more than one: {problem}");
}

fn stage<'a>(recipe: &'a Recipe, name: &str) -> &'a Stage {
    recipe.stage(name).unwrap()
}

#[test]
fn every_built_in_recipe_is_read_and_comes_back_the_same_from_its_own_text() {
    for (name, _) in BUILT_IN {
        let recipe = Recipe::load(name, &[]).unwrap();
        assert_eq!(recipe.name, *name);
        let written = recipe.to_toml();
        let again = Recipe::parse("written", &written, &[]).unwrap();
        assert_eq!(recipe, again, "{name}");
        assert_eq!(written, again.to_toml(), "{name}");
    }
}

#[test]
fn the_recipe_of_a_tower_alone_is_the_default_recipes_first_stage_at_length() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/tower.toml");
    let [alone, whole] = [path, "emoji"].map(|recipe| Recipe::load(recipe, &[]).unwrap());
    assert_eq!(alone.model, whole.model);
    assert!(alone.stages[0].steps > whole.stages[0].steps);
    let steps = alone.stages[0].steps;
    let first = Stage {
        steps,
        ..whole.stages[0].clone()
    };
    assert_eq!(alone.stages, [first]);
}

#[test]
fn a_misspelt_key_is_refused_with_the_key_that_was_meant() {
    refused_at_its_line("[model.vision]", "depth", "depht", &["did you mean depth?"]);
    refused_at_its_line("[model.vision]", "depth", "depht", &["model.vision.depht"]);
    refused_at_its_line(
        "\"warm-up\"",
        "learning_rate",
        "learnig_rate",
        &["stage warm-up: learnig_rate", "did you mean learning_rate?"],
    );
    refused_at_its_line(
        "[model]",
        "embed_dim",
        "embd_dim",
        &["did you mean embed_dim?"],
    );
    refused_at_its_line(
        "[model]",
        "unshuffle_factor",
        "unshuffle_facto",
        &["model.connector.unshuffle_facto", "unshuffle_factor?"],
    );
    refused_at_its_line("name =", "seed", "sed", &["did you mean seed?"]);
    refused_at_its_line(
        "\"warm-up\"",
        "kind",
        "xyzzy",
        &["expected one of name, kind, trains"],
    );
}

#[test]
fn a_misspelt_module_task_or_choice_is_refused_with_the_one_that_was_meant() {
    refused_at_its_line(
        "\"fine-grained\"",
        "trains = [\"vision\", \"connector\", \"align\"]",
        "trains = [\"vision\", \"conector\", \"align\"]",
        &[
            "stage fine-grained: trains",
            "conector (did you mean connector?)",
        ],
    );
    refused_at_its_line(
        "\"target\"",
        "reinitialize = [\"connector\"]",
        "reinitialize = [\"conector\"]",
        &["stage target: reinitialize", "did you mean connector?"],
    );
    refused_at_its_line(
        "\"world-knowledge\"",
        "data = { dense_captions",
        "data = { dense_caption",
        &[
            "stage world-knowledge: data.dense_caption",
            "did you mean dense_captions?",
        ],
    );
    refused_at_its_line(
        "\"warm-up\"",
        "kind = \"refine\"",
        "kind = \"refined\"",
        &["stage warm-up: kind", "refined (did you mean refine?)"],
    );
    refused_at_its_line(
        "[model.vision]",
        "norm = \"rms\"",
        "norm = \"rsm\"",
        &["model.vision.norm", "rsm (did you mean rms?)"],
    );
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_the_kind_that_was_wanted() {
    let wrong = "\"fine-grained\"";
    refused_at_its_line(
        wrong,
        "batch_size = 8",
        "batch_size = \"8\"",
        &[
            "stage fine-grained: batch_size",
            "expected a whole number from 0 up",
            "string",
        ],
    );
    refused_at_its_line(
        wrong,
        "batch_size = 8",
        "batch_size = -8",
        &["batch_size", "whole number", "-8"],
    );
    refused_at_its_line(
        wrong,
        "steps = 6",
        "steps = 6.5",
        &["steps", "whole number", "6.5"],
    );
    refused_at_its_line(
        wrong,
        "learning_rate = 1e-3",
        "learning_rate = true",
        &["learning_rate", "expected a number", "true"],
    );
    refused_at_its_line(
        wrong,
        "trains = [\"vision\", \"connector\", \"align\"]",
        "trains = \"vision\"",
        &["trains", "expected a list", "vision"],
    );
    refused_at_its_line(
        wrong,
        "warmup_ratio = 0.03",
        "betas = [0.9]",
        &["betas", "array of length 2"],
    );
    refused_at_its_line(
        "[model]",
        "connector = { unshuffle_factor = 2 }",
        "connector = 2",
        &["connector"],
    );
    refused_at_its_line(
        "seed = 1",
        "seed = 1",
        "seed = [1]",
        &["seed", "whole number"],
    );
}

#[test]
fn a_missing_key_is_refused_with_the_table_it_is_missing_from() {
    let (text, line) = edited("\"fine-grained\"", "batch_size = 8\n", "");
    let problem = parse(&text, &[]).unwrap_err();
    let header = 1 + tiny()[..tiny().find("\"fine-grained\"").unwrap()]
        .matches('\n')
        .count()
        - 1;
    let expected = format!(
        "my.toml, line {header}: stage fine-grained: batch_size: expected a value, found none"
    );
    assert_eq!(problem, expected, "(the key was on line {line})");
    let (text, _) = edited("[model.vision]", "heads = 2\n", "");
    let problem = parse(&text, &[]).unwrap_err();
    assert!(
        problem.contains("model.vision.heads: expected a value, found none"),
        "{problem}"
    );
}

#[test]
fn impossible_values_of_a_stage_are_refused_at_their_line() {
    let place = "\"fine-grained\"";
    let cases = [
        (
            "batch_size = 8",
            "batch_size = 0",
            "expected at least 1, found 0",
        ),
        ("batch_size = 8", "batch_size = 2000000000", "max_tokens"),
        (
            "learning_rate = 1e-3",
            "learning_rate = 7",
            "expected between 0 and 1, found 7",
        ),
        (
            "learning_rate = 1e-3",
            "learning_rate = nan",
            "expected between 0 and 1, found NaN",
        ),
        (
            "max_tokens = 80",
            "max_tokens = 11",
            "expected at least 12: 4 image tokens and room for text",
        ),
        ("steps = 6", "steps = 0", "expected at least 1, found 0"),
        (
            "steps = 6",
            "steps = 1000000000001",
            "expected at most 1000000000000",
        ),
        (
            "batch_size = 8",
            "batch_size = 9000000000000000",
            "expected at most 2147483647",
        ),
        ("steps = 6", "epochs = 0.0", "expected above 0"),
        ("steps = 6", "epochs = inf", "expected above 0"),
        (
            "warmup_ratio = 0.03",
            "warmup_ratio = 1.5",
            "expected a share between 0 and 1, found 1.5",
        ),
        (
            "weight_decay = 0.05",
            "weight_decay = -1.0",
            "expected from 0 to below 1, found -1",
        ),
        (
            "warmup_ratio = 0.03",
            "betas = [0.9, 1.0]",
            "expected from 0 to below 1, found 1",
        ),
        ("warmup_ratio = 0.03", "epsilon = 0.0", "epsilon"),
        (
            "warmup_ratio = 0.03",
            "max_grad_norm = -1.0",
            "expected 0 (off) or above, found -1",
        ),
        (
            "contrastive_weight = 0.1",
            "contrastive_weight = -0.1",
            "expected 0 or above, found -0.1",
        ),
        (
            "warmup_ratio = 0.03",
            "max_caption_tokens = 3",
            "expected at least 4, found 3",
        ),
        (
            "warmup_ratio = 0.03",
            "max_turns = 0",
            "max_turns: expected 1 to 64, found 0",
        ),
        (
            "dense_captions = 0.6",
            "dense_captions = 0.0",
            "expected a share above 0, found 0",
        ),
        (
            "dense_captions = 0.6, ocr = 0.4",
            "facts = 0.6",
            "a task with images",
        ),
        (
            "trains = [\"vision\", \"connector\", \"align\"]",
            "trains = []",
            "trains: expected modules, found none",
        ),
    ];
    for (from, to, part) in cases {
        // A batch too large shows in its product with the tokens, whose line is the next.
        if part == "max_tokens" {
            let (text, _) = edited(place, from, to);
            let problem = parse(&text, &[]).unwrap_err();
            assert!(
                problem.contains("stage fine-grained: max_tokens: expected at most"),
                "{problem}"
            );
        } else {
            refused_at_its_line(place, from, to, &["stage fine-grained: ", part]);
        }
    }
}

#[test]
fn steps_and_epochs_together_or_neither_are_refused() {
    let both = parse(
        &edited("\"warm-up\"", "steps = 6", "steps = 6\nepochs = 1.0").0,
        &[],
    );
    assert!(
        both.unwrap_err()
            .contains("stage warm-up: steps: expected either steps or epochs, found both")
    );
    let neither = parse(&edited("\"warm-up\"", "steps = 6\n", "").0, &[]);
    assert!(
        neither
            .unwrap_err()
            .contains("expected either steps or epochs, found neither")
    );
}

#[test]
fn names_that_clash_or_cannot_be_a_file_are_refused() {
    let place = "\nname = \"fine-grained\"";
    let from = "name = \"fine-grained\"";
    refused_at_its_line(
        place,
        from,
        "name = \"warm-up\"",
        &["name: expected another name for each stage, found warm-up"],
    );
    for bad in ["", "../x", "a b", "a.b", &"x".repeat(65)] {
        let to = format!("name = \"{bad}\"");
        refused_at_its_line(
            place,
            from,
            &to,
            &["expected 1 to 64 letters, digits, - and _"],
        );
    }
    let to = "name = \"a/b\"";
    refused_at_its_line(
        "name =",
        "name = \"tiny\"",
        to,
        &["my.toml, line 6: name: expected 1 to 64"],
    );
}

#[test]
fn impossible_values_of_the_model_are_refused_at_their_line() {
    let cases = [
        (
            "[model.vision]",
            "heads = 2",
            "heads = 3",
            "model.vision.heads: expected a divisor of the width, 32",
        ),
        (
            "[model.vision]",
            "depth = 2",
            "depth = 0",
            "model.vision.depth: expected at least 1, found 0",
        ),
        (
            "[model.vision]",
            "patch_size = 8",
            "patch_size = 64",
            "expected at most image_size, 32",
        ),
        (
            "[model.vision]",
            "width = 32",
            "width = 3000000000",
            "expected at most 1048576",
        ),
        (
            "[model.text]",
            "heads = 2",
            "heads = 5",
            "model.text.heads: expected a divisor of the width",
        ),
        (
            "[model.language]",
            "depth = 2",
            "depth = 0",
            "model.language.depth: expected at least 1",
        ),
        (
            "[model.language]",
            "head_dim = 16",
            "head_dim = 12",
            "expected a multiple of 8, found 12",
        ),
        (
            "[model.language]",
            "key_value_heads = 1",
            "key_value_heads = 3",
            "expected a divisor of heads, 2",
        ),
        (
            "[model.language]",
            "vocabulary = 512",
            "vocabulary = 511",
            "expected at least 512",
        ),
        (
            "[model]",
            "connector = { unshuffle_factor = 2 }",
            "connector = { unshuffle_factor = 3 }",
            "expected a divisor of the patch grid's side, 4",
        ),
    ];
    for (after, from, to, part) in cases {
        refused_at_its_line(after, from, to, &[part]);
    }
}

#[test]
fn text_that_is_not_toml_is_refused_at_its_line() {
    for (from, to) in [
        ("seed = 1", "seed = = 1"),
        ("seed = 1", "seed = 1\nseed = 2"),
        ("seed = 1", "seed 1"),
    ] {
        let (text, line) = edited("name =", from, to);
        let problem = parse(&text, &[]).unwrap_err();
        let line = line + usize::from(to.contains('\n'));
        let expected = format!("my.toml, line {line}: expected valid TOML");
        assert!(
            problem.starts_with(&expected),
            "expected {expected}… in: {problem}"
        );
        assert_eq!(problem.lines().count(), 1, "{problem}");
    }
}

#[test]
fn an_unknown_preset_or_recipe_is_refused_with_a_near_miss() {
    let text = "name = \"x\"\nseed = 1\n[model.vision]\npreset = \"sailvit-hugh\"\n";
    let problem = parse(text, &[]).unwrap_err();
    let expected = "my.toml, line 4: model.vision.preset: found sailvit-hugh (did you mean sailvit-huge?)\n  \
                  expected one of sailvit-large, sailvit-huge";
    assert!(problem.starts_with(expected), "{problem}");
    let problem = parse(&text.replace("\"sailvit-hugh\"", "7"), &[]).unwrap_err();
    assert!(
        problem.contains("line 4: model.vision.preset: expected one of"),
        "{problem}"
    );
    let problem = Recipe::load("tinny", &[]).unwrap_err().to_string();
    assert!(
        problem.contains("found tinny (did you mean tiny?)\n  expected the path of a TOML file"),
        "{problem}"
    );
    let problem = Recipe::load("no/such.toml", &[]).unwrap_err().to_string();
    assert!(
        problem.starts_with("no/such.toml: cannot read the recipe: No such file"),
        "{problem}"
    );
}

#[test]
fn a_preset_gives_what_is_not_set_beside_it() {
    let huge = Recipe::load("sailvit-huge", &["model.vision.depth=2".into()]).unwrap();
    assert_eq!(
        (huge.model.vision.depth, huge.model.vision.width),
        (2, 1536)
    );
    let plain = Recipe::load("sailvit-huge", &[]).unwrap();
    assert_eq!(
        (plain.model.vision.depth, plain.model.language.width),
        (24, 1536)
    );
    let other = ["model.language.preset=qwen3-0.6b".to_owned()];
    let other = Recipe::load("sailvit-huge", &other).unwrap();
    assert!(other.model.language.qk_norm && !plain.model.language.qk_norm);
    // Below its preset, a value is named at the preset's table.
    let problem = Recipe::load("sailvit-huge", &["model.vision.heads=7".into()]).unwrap_err();
    assert!(
        problem
            .to_string()
            .starts_with("--set model.vision.heads=7: "),
        "{problem}"
    );
}

#[test]
fn a_size_that_is_only_just_possible_can_be_planned() {
    let sets = [
        "stage.warm-up.max_tokens=12",
        "stage.warm-up.batch_size=1",
        "stage.warm-up.max_caption_tokens=4",
    ];
    let recipe = parse(tiny(), &sets).unwrap();
    let stage = stage(&recipe, "warm-up");
    let layout = keel::model::declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let target = keel::tape::Target::Cpu { threads: 1 };
    let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
    let program = compile_step(&recipe, stage, &layout, &shape, target, None).unwrap();
    assert!(program.arena_bytes() > 0);
}
