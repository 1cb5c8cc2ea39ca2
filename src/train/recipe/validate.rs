//! What a recipe's values must be, alone and together. Subjects of errors are paths of settings joined by dots, which
//! the recipe's reader turns into file, line and name.

use std::collections::BTreeMap;

use super::schedule::DECAY_RATIO;
use super::stage::ContrastWith;
use super::validation::validate_validation;
use super::{MODULES, Recipe, Schedule, Stage, StageKind, validate_origins};
use crate::worlds::{TASKS, task_named};
use keel_base::error::{Error, Result, with_near_miss};
use keel_data::records::MOST_IMAGES;
use keel_data::tokenizer;
use keel_model::{DISTILLATION, LORA};

/// Rows of a batch, B·T, are counted in 32 bits by the kernels' index inputs.
const MOST_ROWS: usize = i32::MAX as usize;

/// Most questions about one scene: more than a scene of four things has different ones.
const MOST_TURNS: usize = 64;

/// Most steps of a stage: a thousand years of them.
const MOST_STEPS: u64 = 1_000_000_000_000;

/// Longest name of a recipe or stage: it becomes part of a file's name.
const MOST_NAME: usize = 64;

/// Refuses values that cannot be.
///
/// # Errors
/// [`Error::Setting`] whose subject is the setting's path, for example `stage.2.batch_size`.
pub(crate) fn validate_recipe(recipe: &Recipe) -> Result<()> {
    validate_name("name", &recipe.name)?;
    let most_seed = i64::MAX as u64;
    let want = format!("at most {most_seed}, the largest number TOML holds");
    require("seed", recipe.seed <= most_seed, want, recipe.seed)?;
    let is_known = (1..=2).contains(&recipe.zero_stage);
    require("zero_stage", is_known, "1 or 2", recipe.zero_stage)?;
    recipe
        .model
        .validate()
        .map_err(|problem| below("model", problem))?;
    let towers = [
        (
            "model.language.vocabulary",
            Some(recipe.model.language.vocabulary),
        ),
        (
            "model.text.vocabulary",
            recipe.model.text.as_ref().map(|text| text.vocabulary),
        ),
    ];
    for (key, vocabulary) in towers {
        // A published tokeniser is held to the model when it is read.
        let least = match recipe.chat {
            Some(_) => 1,
            None => tokenizer::VOCABULARY,
        };
        let vocabulary = vocabulary.unwrap_or(least);
        let want = format!("at least {least}, which the tokeniser makes");
        require(key, vocabulary >= least, want, vocabulary)?;
    }
    if let Some(pixels) = &recipe.pixels {
        for mean in pixels.mean {
            require("pixels.mean", mean.is_finite(), "finite numbers", mean)?;
        }
        for std in pixels.std {
            let holds = std > 0.0 && std.is_finite();
            require("pixels.std", holds, "numbers above 0", std)?;
        }
    }
    require("stage", !recipe.stages.is_empty(), "at least one", "none")?;
    for (index, stage) in recipe.stages.iter().enumerate() {
        let in_stage = |problem| below(&format!("stage.{index}"), problem);
        let is_new = recipe.stages[..index]
            .iter()
            .all(|other| other.name != stage.name);
        let want = "another name for each stage";
        require("name", is_new, want, &stage.name).map_err(in_stage)?;
        validate_stage(recipe, stage).map_err(in_stage)?;
        if recipe.reproducible_across_ranks && stage.micro_batch_size.is_none() {
            let want = "given with reproducible_across_ranks: a micro-batch that depends on the number of ranks leaves other bits";
            return Err(in_stage(Error::setting("micro_batch_size", want, "none")));
        }
        let unfit = if recipe.stochastic_rounding {
            Some("no Muon with stochastic_rounding: it rounds to nearest")
        } else if recipe.zero_stage == 2 {
            Some("no Muon with zero_stage = 2: it needs whole matrices on every rank")
        } else {
            None
        };
        if let (Some(want), false) = (unfit, stage.muon.is_empty()) {
            let found = stage.muon.join(", ");
            return Err(in_stage(Error::setting("muon", want, found)));
        }
    }
    validate_origins(recipe)
}

fn validate_stage(recipe: &Recipe, stage: &Stage) -> Result<()> {
    validate_name("name", &stage.name)?;
    require("trains", !stage.trains.is_empty(), "modules", "none")?;
    for (key, modules) in [
        ("trains", &stage.trains),
        ("reinitialize", &stage.reinitialize),
    ] {
        for module in modules {
            if !MODULES.contains(&module.as_str()) {
                let want = format!("modules out of {}", MODULES.join(", "));
                return Err(Error::setting(key, want, with_near_miss(module, MODULES)));
            }
        }
    }
    let model = &recipe.model;
    let has_adapters = model.vision.lora.is_some() || model.language.lora.is_some();
    let trains_them = stage.trains.iter().any(|module| module == LORA);
    let want = "modules of the model, which has no adapters without [model.language.lora] or [model.vision.lora]";
    require("trains", has_adapters || !trains_them, want, LORA)?;
    validate_distillation(recipe, stage)?;
    validate_data(stage)?;
    validate_contrast(stage)?;
    validate_sizes(recipe, stage)?;
    validate_rates(stage)?;
    validate_schedule(stage)?;
    validate_optimiser(stage)?;
    validate_regularisation(recipe, stage)?;
    validate_validation(stage)
}

/// Names become names of files and folders.
fn validate_name(key: &str, name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let holds = !name.is_empty() && name.chars().all(is_plain) && name.chars().count() <= MOST_NAME;
    let want = format!("1 to {MOST_NAME} letters, digits, - and _");
    require(key, holds, want, format!("{name:?}"))
}

fn validate_data(stage: &Stage) -> Result<()> {
    let holds = stage.data_share > 0.0 && stage.data_share <= 1.0;
    require(
        "data_share",
        holds,
        "above 0 and at most 1",
        stage.data_share,
    )?;
    require("data", !stage.data.is_empty(), "at least one task", "none")?;
    let names = TASKS.map(|task| task.name);
    let mut has_images = false;
    for (task, share) in &stage.data {
        let key = format!("data.{task}");
        let Some(known) = task_named(task) else {
            let want = format!("tasks out of {}", names.join(", "));
            return Err(Error::setting(key, want, with_near_miss(task, &names)));
        };
        let holds = *share > 0.0 && share.is_finite();
        require(&key, holds, "a share above 0", share)?;
        has_images |= known.has_images;
    }
    require(
        "data",
        stage.contrastive_weight == 0.0 || has_images,
        "a task with images in a stage with a contrastive loss",
        "text only",
    )
}

/// A stage contrasts with one text side, and one with the text tower learns nothing but that.
fn validate_contrast(stage: &Stage) -> Result<()> {
    let is_warm = stage.kind == StageKind::WarmStart;
    match stage.contrast_with {
        Some(ContrastWith::LanguageModel) if is_warm => {
            let want = "text_tower in a warm start";
            Err(Error::setting("contrast_with", want, "language_model"))
        }
        Some(ContrastWith::TextTower) if !is_warm => {
            let want = "above 0 in a stage with contrast_with";
            let weight = stage.contrastive_weight;
            require("contrastive_weight", weight > 0.0, want, weight)?;
            let want = "0 in a stage of refinement that contrasts with the text tower";
            let weight = stage.next_token_weight;
            require("next_token_weight", weight == 0.0, want, weight)
        }
        _ => Ok(()),
    }
}

/// A teacher is needed where a stage distills, and a stage that distills where there is something only that would train.
fn validate_distillation(recipe: &Recipe, stage: &Stage) -> Result<()> {
    let (model, weight) = (&recipe.model, stage.distillation_weight);
    let key = "distillation_weight";
    require(key, (0.0..=1e6).contains(&weight), "0 or above", weight)?;
    let trains = |module: &str| stage.trains.iter().any(|trained| trained == module);
    if weight == 0.0 {
        let want = "left out in a stage without distillation_weight";
        require(
            "distillation_loss",
            stage.distillation_loss.is_none(),
            want,
            "given",
        )?;
        let want = "modules of the stage, which distills nothing without distillation_weight";
        return require("trains", !trains(DISTILLATION), want, DISTILLATION);
    }
    let want = "0 in a recipe without a teacher, [model.teacher]";
    require(key, model.teacher.is_some(), want, weight)?;
    let learns = trains("vision") || trains(LORA) && model.vision.lora.is_some();
    let want = "0 in a stage that trains neither vision nor adapters of it";
    require(key, learns, want, weight)?;
    let want = "0 in a stage that distills, whose teacher sees all patches";
    require(
        "patch_dropout",
        stage.patch_dropout == 0.0,
        want,
        stage.patch_dropout,
    )?;
    let compares = stage
        .distillation_loss
        .unwrap_or_default()
        .compares_features();
    let want =
        "modules of the stage, whose distillation_loss compares no features and projects none";
    require(
        "trains",
        compares || !trains(DISTILLATION),
        want,
        DISTILLATION,
    )?;
    if !compares {
        return Ok(());
    }
    let (projects, own) = (model.projects_features(), model.vision.width);
    let theirs = model.teacher_tower().map_or(own, |tower| tower.width);
    let want = format!(
        "{DISTILLATION} among them, the projection of the tower's width, {own}, into the teacher's, {theirs}"
    );
    require(
        "trains",
        !projects || trains(DISTILLATION),
        want,
        "without it",
    )?;
    let want = "modules of the model, in which tower and teacher are equally wide and nothing is projected";
    require(
        "trains",
        projects || !trains(DISTILLATION),
        want,
        DISTILLATION,
    )
}

fn validate_images(stage: &Stage) -> Result<()> {
    let holds = (1..=MOST_IMAGES).contains(&stage.max_images);
    let want = format!("1 to {MOST_IMAGES}");
    require("max_images", holds, want, stage.max_images)?;
    let splices = stage.kind != StageKind::WarmStart && stage.next_token_weight > 0.0;
    let want = "1 in a stage that puts no images into conversations";
    let holds = stage.max_images == 1 || splices;
    require("max_images", holds, want, stage.max_images)
}

/// Most tiles of an image; published models are trained with 12 and asked with up to 40.
const MOST_TILES: usize = 64;

fn validate_tiles(stage: &Stage) -> Result<()> {
    let splices = stage.kind != StageKind::WarmStart && stage.next_token_weight > 0.0;
    let want = "0 in a stage that puts no images into conversations";
    require(
        "max_tiles",
        stage.max_tiles == 0 || splices,
        want,
        stage.max_tiles,
    )?;
    let want = format!("0, or 2 to {MOST_TILES}");
    let holds = stage.max_tiles <= MOST_TILES && stage.max_tiles != 1;
    require("max_tiles", holds, want, stage.max_tiles)?;
    if let Some(room) = stage.tile_budget {
        let want = format!("1 to max_tiles = {}", stage.max_tiles);
        require(
            "tile_budget",
            (1..=stage.max_tiles).contains(&room),
            want,
            room,
        )?;
    }
    Ok(())
}

fn validate_sizes(recipe: &Recipe, stage: &Stage) -> Result<()> {
    let is_warm = stage.kind == StageKind::WarmStart;
    at_most("batch_size", stage.batch_size as u64, MOST_ROWS as u64)?;
    if let Some(micro_batch) = stage.micro_batch_size {
        let holds = micro_batch >= 1 && stage.batch_size.is_multiple_of(micro_batch);
        let want = format!("a number that divides batch_size = {}", stage.batch_size);
        require("micro_batch_size", holds, want, micro_batch)?;
    }
    let holds = stage.samples_per_sequence >= 1
        && stage
            .micro_batch()
            .is_multiple_of(stage.samples_per_sequence);
    let want = format!(
        "a number that divides the {} samples computed at once",
        stage.micro_batch()
    );
    require(
        "samples_per_sequence",
        holds,
        want,
        stage.samples_per_sequence,
    )?;
    let holds = stage.samples_per_sequence == 1 || stage.next_token_weight > 0.0;
    let want = "1 in a stage that predicts no tokens";
    require(
        "samples_per_sequence",
        holds,
        want,
        stage.samples_per_sequence,
    )?;
    validate_tiles(stage)?;
    validate_images(stage)?;
    let image_tokens = if is_warm {
        0
    } else {
        recipe.model.image_tokens()
    };
    let least = image_tokens + 8;
    require(
        "max_tokens",
        stage.max_tokens >= least,
        format!("at least {least}: {image_tokens} image tokens and room for text"),
        stage.max_tokens,
    )?;
    require(
        "max_caption_tokens",
        stage.max_caption_tokens >= 4,
        "at least 4",
        stage.max_caption_tokens,
    )?;
    let holds = (1..=MOST_TURNS).contains(&stage.max_turns);
    let want = format!("1 to {MOST_TURNS}");
    require("max_turns", holds, want, stage.max_turns)?;
    for (key, tokens) in [
        ("max_tokens", stage.max_tokens),
        ("max_caption_tokens", stage.max_caption_tokens),
    ] {
        let holds = tokens <= MOST_ROWS / stage.micro_batch();
        let want = format!("at most {MOST_ROWS} ÷ the samples computed at once");
        require(key, holds, want, tokens)?;
    }
    if stage.contrasts_with_text_tower() && stage.contrastive_weight > 0.0 {
        let Some(text) = &recipe.model.text else {
            return Err(Error::setting(
                "contrastive_weight",
                "a [model.text] tower for the contrastive loss, or contrastive_weight = 0",
                stage.contrastive_weight,
            ));
        };
        require(
            "max_caption_tokens",
            stage.max_caption_tokens == text.context_length,
            format!("the text tower's context_length, {}", text.context_length),
            stage.max_caption_tokens,
        )?;
    }
    if stage.steps.is_some() == stage.epochs.is_some() {
        let found = match stage.steps {
            Some(_) => "both",
            None => "neither",
        };
        return Err(Error::setting("steps", "either steps or epochs", found));
    }
    let steps = stage.steps.unwrap_or(1);
    at_most("steps", steps, MOST_STEPS)?;
    let epochs = stage.epochs.unwrap_or(1.0);
    let holds = epochs > 0.0 && epochs <= 1e6;
    require("epochs", holds, "above 0 and at most a million", epochs)
}

/// Numbers of learning rates and weight decays; whose they are is held to the model's parameters elsewhere.
fn validate_rates(stage: &Stage) -> Result<()> {
    let own = |key: &str, numbers: &BTreeMap<String, f64>| -> Vec<(String, f64)> {
        let numbers = numbers.iter();
        let numbers = numbers.map(|(name, number)| (format!("{key}.{name}"), *number));
        numbers.collect()
    };
    let mut rates = own("learning_rates", &stage.learning_rates);
    rates.push(("learning_rate".to_owned(), stage.learning_rate));
    for (key, rate) in rates {
        require(&key, rate > 0.0 && rate < 1.0, "between 0 and 1", rate)?;
    }
    let mut decays = own("weight_decays", &stage.weight_decays);
    decays.push(("weight_decay".to_owned(), stage.weight_decay));
    for (key, decay) in decays {
        let holds = (0.0..1.0).contains(&decay);
        require(&key, holds, "from 0 to below 1", decay)?;
    }
    let mut factors = own("layer_decay", &stage.layer_decay);
    factors.push(("patch_embed_factor".to_owned(), stage.patch_embed_factor));
    for (key, factor) in factors {
        let holds = factor > 0.0 && factor <= 1.0;
        require(&key, holds, "above 0 and at most 1", factor)?;
    }
    Ok(())
}

fn validate_schedule(stage: &Stage) -> Result<()> {
    let share = 0.0..=1.0;
    require(
        "warmup_ratio",
        share.contains(&stage.warmup_ratio),
        "a share between 0 and 1",
        stage.warmup_ratio,
    )?;
    let key = "min_learning_rate_ratio";
    let least = stage.min_learning_rate_ratio;
    require(
        key,
        share.contains(&least),
        "a share between 0 and 1",
        least,
    )?;
    let falls = stage.schedule != Schedule::Constant || least == 0.0;
    require(key, falls, "0 with a constant schedule", least)?;
    let decay_ratio = stage.decay_ratio.unwrap_or(DECAY_RATIO);
    if stage.schedule == Schedule::WarmupStableDecay {
        let room = 1.0 - stage.warmup_ratio;
        let holds = decay_ratio > 0.0 && decay_ratio <= room;
        let want = format!("above 0 and at most {room}, which the warmup leaves");
        return require("decay_ratio", holds, want, decay_ratio);
    }
    let want = "left out without schedule = \"warmup_stable_decay\"";
    require(
        "decay_ratio",
        stage.decay_ratio.is_none(),
        want,
        decay_ratio,
    )?;
    require("decay_shape", stage.decay_shape.is_none(), want, "given")
}

fn validate_optimiser(stage: &Stage) -> Result<()> {
    let share = 0.0..1.0;
    for beta in stage.betas {
        require("betas", share.contains(&beta), "from 0 to below 1", beta)?;
    }
    // The smallest number that f32, in which the update is computed, still has in full.
    let holds = stage.epsilon >= f64::from(f32::MIN_POSITIVE) && stage.epsilon < 1.0;
    require("epsilon", holds, "between 1.2e-38 and 1", stage.epsilon)?;
    if let Some(momentum) = stage.muon_momentum {
        let holds = share.contains(&momentum);
        require("muon_momentum", holds, "from 0 to below 1", momentum)?;
        let want = "left out in a stage without muon";
        require("muon_momentum", !stage.muon.is_empty(), want, momentum)?;
    }
    if let Some(decay) = stage.ema_decay {
        let holds = decay > 0.0 && decay < 1.0;
        require("ema_decay", holds, "above 0 and below 1", decay)?;
    }
    let holds = (0.0..=1e30).contains(&stage.max_grad_norm);
    require(
        "max_grad_norm",
        holds,
        "0 (off) or above",
        stage.max_grad_norm,
    )?;
    let holds = (0.0..=1.0).contains(&stage.augmentation);
    require("augmentation", holds, "between 0 and 1", stage.augmentation)?;
    for (key, weight) in [
        ("next_token_weight", stage.next_token_weight),
        ("contrastive_weight", stage.contrastive_weight),
    ] {
        require(key, (0.0..=1e6).contains(&weight), "0 or above", weight)?;
    }
    require(
        "next_token_weight",
        stage.next_token_weight > 0.0 || stage.contrastive_weight > 0.0,
        "above 0 where contrastive_weight is 0",
        stage.next_token_weight,
    )
}

fn validate_regularisation(recipe: &Recipe, stage: &Stage) -> Result<()> {
    for (key, share) in [
        ("drop_path_rate", stage.drop_path_rate.unwrap_or_default()),
        ("patch_dropout", stage.patch_dropout),
    ] {
        require(key, (0.0..1.0).contains(&share), "from 0 to below 1", share)?;
        let want = "0 in a stage that does not train vision";
        require(key, share == 0.0 || stage.trains("vision"), want, share)?;
    }
    let keeps_grid = stage.kind != StageKind::WarmStart;
    let want =
        "0 in a stage that shows images to the language model, whose connector needs all patches";
    let share = stage.patch_dropout;
    require("patch_dropout", share == 0.0 || !keeps_grid, want, share)?;
    // Which patches stay would have to be told to every block.
    let turns = recipe.model.vision.rope_theta.is_some();
    let want = "0 for a tower with rotary positions, which go by the whole grid of patches";
    require("patch_dropout", share == 0.0 || !turns, want, share)
}

/// Holds a number of things to 1 and more, and `most`.
fn at_most(key: &str, count: u64, most: u64) -> Result<()> {
    require(key, count >= 1, "at least 1", count)?;
    require(key, count <= most, format!("at most {most}"), count)
}

fn require(key: &str, holds: bool, want: impl ToString, found: impl ToString) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::setting(key, want, found))
    }
}

/// The problem with its subject's path one table further down.
fn below(table: &str, problem: Error) -> Error {
    match problem {
        Error::Setting { what, want, found } => {
            Error::setting(format!("{table}.{what}"), want, found)
        }
        other => other,
    }
}
