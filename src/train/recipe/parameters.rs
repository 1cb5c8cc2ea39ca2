//! What of the model a stage trains, and each part's learning rate and weight decay: patterns, layers and factors against
//! the names of the model's parameters.

use std::collections::BTreeMap;

use super::{Recipe, Stage};
use keel_base::error::{Error, Result, with_near_miss};
use keel_engine::ops::{Optimizer, ParameterGroup, ParameterGroups};
use keel_engine::tape::{ParameterLayout, ParameterSpec};
use keel_model::{LORA, LoraConfig, ParameterPattern, declare};

/// Muon's momentum where `muon_momentum` is left out.
const MUON_MOMENTUM: f64 = 0.95;

/// The modules that are made of blocks, one after the other.
const LAYERED: &[&str] = &["vision", "text", "language"];

/// What follows the blocks of a module; all other parts of it come before them.
const AFTER_BLOCKS: &[&str] = &["final_norm", "head"];

/// The part whose learning rate `patch_embed_factor` scales.
const PATCH_EMBED: &str = "vision.patch_embed";

/// The module of a parameter.
fn module(parameter: &str) -> &str {
    parameter.split('.').next().unwrap_or(parameter)
}

/// The index of the block that a parameter belongs to.
fn block(parameter: &str) -> Option<usize> {
    let mut parts = parameter.split('.').skip(1);
    let is_block = parts.next() == Some("blocks");
    parts.next().filter(|_| is_block)?.parse().ok()
}

impl Stage {
    /// Whether the stage trains the parameter of that name: its module is trained, and nothing freezes it.
    pub fn trains(&self, parameter: &str) -> bool {
        let is_trained = self.trains.iter().any(|name| name == module(parameter));
        let mut patterns = self.freeze.iter();
        is_trained && !patterns.any(|pattern| ParameterPattern::new(pattern).takes(parameter))
    }

    /// What it trains, in words: `vision (but vision.blocks.0-5) + connector`.
    pub fn trained_parts(&self) -> String {
        let part = |name: &String| {
            let frozen = self.freeze.iter();
            let frozen = frozen.filter(|pattern| module(pattern) == name);
            let frozen: Vec<&str> = frozen.map(String::as_str).collect();
            match &frozen[..] {
                [] => name.clone(),
                frozen => format!("{name} (but {})", frozen.join(", ")),
            }
        };
        let mut parts = self.trains.iter().map(part).collect::<Vec<_>>().join(" + ");
        let modules: Vec<&str> = self.freeze.iter().map(|pattern| module(pattern)).collect();
        let others = self.freeze.iter().zip(modules);
        let others = others.filter(|(_, module)| !self.trains.iter().any(|name| name == module));
        let others: Vec<&str> = others.map(|(pattern, _)| pattern.as_str()).collect();
        if !others.is_empty() {
            parts += &format!(" (but {})", others.join(", "));
        }
        parts
    }

    /// How the parameters of the layout that the stage trains are updated: each group's learning rate as a factor of
    /// [`Stage::learning_rate_at`], and its weight decay.
    ///
    /// # Errors
    /// [`Error::Setting`] when the layout has nothing that the stage trains.
    pub fn parameter_groups(&self, layout: &ParameterLayout) -> Result<ParameterGroups> {
        let is_plain = self.learning_rates.is_empty()
            && self.weight_decays.is_empty()
            && self.layer_decay.is_empty()
            && self.muon.is_empty()
            && self.patch_embed_factor == 1.0;
        if is_plain {
            return Ok(ParameterGroups::decaying(self.weight_decay));
        }
        let layers = Layers::of(layout);
        let decays = Claims::of(&self.weight_decays, layout);
        let rates = Claims::of(&self.learning_rates, layout);
        let mut groups: Vec<ParameterGroup> = Vec::new();
        let entries = layout.entries().iter().map(|entry| &entry.spec);
        for spec in entries.filter(|spec| self.trains(&spec.name)) {
            let learning_rate_factor = self.rate_factor(spec, &rates, &layers);
            let weight_decay = match decays.of_parameter(&spec.name) {
                Some(claim) if spec.decays || !claim.has_matrices => claim.number,
                None if spec.decays => self.weight_decay,
                _ => 0.0,
            };
            let optimizer = match self.uses_muon(spec) {
                true => Optimizer::Muon {
                    momentum: self.muon_momentum.unwrap_or(MUON_MOMENTUM),
                },
                false => Optimizer::AdamW,
            };
            let is_its = |group: &&mut ParameterGroup| {
                group.learning_rate_factor == learning_rate_factor
                    && group.weight_decay == weight_decay
                    && group.optimizer == optimizer
            };
            match groups.iter_mut().find(is_its) {
                Some(group) => group.patterns.push(spec.name.clone()),
                None => groups.push(ParameterGroup {
                    patterns: vec![spec.name.clone()],
                    decays: None,
                    learning_rate_factor,
                    weight_decay,
                    optimizer,
                }),
            }
        }
        ParameterGroups::new(groups)
    }

    /// The least and the largest peak learning rate of every module that the stage trains; nothing where all have one rate.
    ///
    /// # Errors
    /// As [`Stage::parameter_groups`].
    pub fn peak_rates<'l>(&self, layout: &'l ParameterLayout) -> Result<Vec<(&'l str, [f64; 2])>> {
        let groups = self.parameter_groups(layout)?;
        let mut rates: Vec<(&str, [f64; 2])> = Vec::new();
        let specs = layout.entries().iter().map(|entry| &entry.spec);
        for spec in specs.filter(|spec| self.trains(&spec.name)) {
            let group = &groups.groups()[groups.index_of(spec)?];
            let rate = self.learning_rate * group.learning_rate_factor;
            match rates.last_mut() {
                Some((module, [least, most])) if *module == spec.module() => {
                    (*least, *most) = (least.min(rate), most.max(rate));
                }
                _ => rates.push((spec.module(), [rate, rate])),
            }
        }
        let is_one = |(_, ends): &(&str, [f64; 2])| *ends == [self.learning_rate; 2];
        if rates.iter().all(is_one) {
            rates.clear();
        }
        Ok(rates)
    }

    /// Whether Muon updates a parameter: the matrices of what `muon` names.
    fn uses_muon(&self, spec: &ParameterSpec) -> bool {
        let mut patterns = self.muon.iter();
        let is_matrix = spec.decays && spec.shape.rank() == 2;
        is_matrix && patterns.any(|text| ParameterPattern::new(text).takes(&spec.name))
    }

    fn rate_factor(&self, spec: &ParameterSpec, rates: &Claims<'_>, layers: &Layers<'_>) -> f64 {
        let own = rates.of_parameter(&spec.name);
        let mut factor = own.map_or(1.0, |claim| claim.number / self.learning_rate);
        if let Some(decay) = self.layer_decay.get(spec.module()) {
            factor *= decay.powi(layers.below_the_end(spec));
        }
        if ParameterPattern::new(PATCH_EMBED).takes(&spec.name) {
            factor *= self.patch_embed_factor;
        }
        factor
    }
}

/// The blocks of each module.
struct Layers<'a>(BTreeMap<&'a str, usize>);

impl<'a> Layers<'a> {
    fn of(layout: &'a ParameterLayout) -> Layers<'a> {
        let mut layers = BTreeMap::new();
        for entry in layout.entries() {
            let blocks = block(&entry.spec.name).map_or(0, |block| block + 1);
            let known: &mut usize = layers.entry(entry.spec.module()).or_default();
            *known = blocks.max(*known);
        }
        Layers(layers)
    }

    /// L + 1 − l: how many layers a parameter of layer l stands below what follows the L blocks of its module.
    fn below_the_end(&self, spec: &ParameterSpec) -> i32 {
        let blocks = self.0.get(spec.module()).copied().unwrap_or_default();
        let part = spec.name.split('.').nth(1).unwrap_or_default();
        let layer = match block(&spec.name) {
            Some(block) => block + 1,
            None if AFTER_BLOCKS.contains(&part) => blocks + 1,
            None => 0,
        };
        (blocks + 1 - layer) as i32
    }
}

/// Numbers by pattern.
struct Claims<'a>(Vec<Claim<'a>>);

struct Claim<'a> {
    pattern: ParameterPattern<'a>,
    number: f64,
    /// Whether there are parameters declared to decay among those that it takes.
    has_matrices: bool,
}

impl<'a> Claims<'a> {
    fn of(numbers: &'a BTreeMap<String, f64>, layout: &ParameterLayout) -> Claims<'a> {
        let claim = |(text, number): (&'a String, &f64)| {
            let pattern = ParameterPattern::new(text);
            let mut specs = layout.entries().iter().map(|entry| &entry.spec);
            let has_matrices = specs.any(|spec| spec.decays && pattern.takes(&spec.name));
            Claim {
                pattern,
                number: *number,
                has_matrices,
            }
        };
        Claims(numbers.iter().map(claim).collect())
    }

    fn of_parameter(&self, name: &str) -> Option<&Claim<'a>> {
        self.0.iter().find(|claim| claim.pattern.takes(name))
    }
}

/// Refuses patterns and layers that the recipe's model does not have, or that its stages do not train.
///
/// # Errors
/// [`Error::Setting`] whose subject is the setting's name behind what `path` gives for its stage.
pub(crate) fn validate_patterns(
    recipe: &Recipe,
    path: impl Fn(usize, &Stage) -> String,
) -> Result<()> {
    let asks = |stage: &Stage| {
        !(stage.freeze.is_empty()
            && stage.learning_rates.is_empty()
            && stage.weight_decays.is_empty()
            && stage.layer_decay.is_empty()
            && stage.muon.is_empty()
            && stage.patch_embed_factor == 1.0)
    };
    check_adapters(recipe)?;
    if !recipe.stages.iter().any(asks) {
        return Ok(());
    }
    let layout = declare(&recipe.model, recipe.contrastive_loss)?;
    let entries = layout.entries().iter();
    let names: Vec<&str> = entries.map(|entry| entry.spec.name.as_str()).collect();
    for (index, stage) in recipe.stages.iter().enumerate() {
        let checked = check_freeze(stage, &names)
            .and_then(|()| check_claims("learning_rates", &stage.learning_rates, stage, &names))
            .and_then(|()| check_claims("weight_decays", &stage.weight_decays, stage, &names))
            .and_then(|()| check_layers(stage, &names))
            .and_then(|()| check_muon(stage, &layout, &names));
        checked.map_err(|problem| match problem {
            Error::Setting { what, want, found } => {
                Error::setting(path(index, stage) + &what, want, found)
            }
            other => other,
        })?;
    }
    Ok(())
}

/// Refuses patterns of adapters that take no linear module of their tower.
fn check_adapters(recipe: &Recipe) -> Result<()> {
    let model = &recipe.model;
    for (tower, lora) in [
        ("vision", &model.vision.lora),
        ("language", &model.language.lora),
    ] {
        let Some(lora) = lora else { continue };
        // Every module that there could be an adapter of: those of packed products apart, and the products.
        let everything = |fused: bool| {
            let mut model = model.clone();
            let all = LoraConfig {
                targets: vec![tower.to_owned()],
                fused: fused.then(|| tower.to_owned()).into_iter().collect(),
                ..lora.clone()
            };
            match tower {
                "vision" => model.vision.lora = Some(all),
                _ => model.language.lora = Some(all),
            }
            declare(&model, recipe.contrastive_loss)
        };
        let (apart, whole) = (everything(false)?, everything(true)?);
        let modules = |layout: &ParameterLayout| -> Vec<String> {
            let names = layout.entries().iter().map(|entry| &entry.spec.name);
            let modules = names.filter_map(|name| {
                let name = name.strip_prefix(LORA)?.strip_prefix('.')?;
                name.strip_suffix(".a").map(str::to_owned)
            });
            modules.filter(|name| module(name) == tower).collect()
        };
        let (apart, whole) = (modules(&apart), modules(&whole));
        let all: Vec<&str> = apart.iter().chain(&whole).map(String::as_str).collect();
        for target in &lora.targets {
            taken(&format!("model.{tower}.lora.targets"), target, &all)?;
        }
        let packed: Vec<&str> = whole
            .iter()
            .filter(|name| !apart.contains(name))
            .map(String::as_str)
            .collect();
        for pattern in &lora.fused {
            taken(&format!("model.{tower}.lora.fused"), pattern, &packed)?;
        }
    }
    Ok(())
}

/// The parameters that a pattern takes.
fn taken<'n>(key: &str, text: &str, names: &[&'n str]) -> Result<Vec<&'n str>> {
    let of = |text: &str| -> Vec<&'n str> {
        let pattern = ParameterPattern::new(text);
        let names = names.iter().copied();
        names.filter(|name| pattern.takes(name)).collect()
    };
    let found = of(text);
    let ends = ParameterPattern::new(text).last_numbers();
    let nothing = |text: &str| {
        let there_is = ParameterPattern::new(text).nearest(names);
        let want = format!("a pattern of the model's parameters ({there_is})");
        Error::setting(key, want, format!("{text}, which takes none"))
    };
    if found.is_empty() {
        return Err(nothing(text));
    }
    // A range that goes on behind the last layer was meant for another model.
    match ends.iter().find(|end| of(end).is_empty()) {
        Some(end) => Err(nothing(end)),
        None => Ok(found),
    }
}

fn check_freeze(stage: &Stage, names: &[&str]) -> Result<()> {
    let is_trained = |name: &str| stage.trains.iter().any(|trained| trained == name);
    for pattern in &stage.freeze {
        let taken = taken("freeze", pattern, names)?;
        if !taken.iter().any(|name| is_trained(module(name))) {
            let want = format!(
                "parts of the modules in trains ({})",
                stage.trains.join(", ")
            );
            let found = format!("{pattern}, which is frozen without it");
            return Err(Error::setting("freeze", want, found));
        }
    }
    for trained in &stage.trains {
        let mut of_it = names
            .iter()
            .filter(|name| module(name) == trained)
            .peekable();
        if of_it.peek().is_some() && !of_it.any(|name| stage.trains(name)) {
            let want = format!("something of {trained} left to train, or trains without {trained}");
            return Err(Error::setting("freeze", want, "all of it frozen"));
        }
    }
    Ok(())
}

/// Refuses numbers for what is frozen, and two for one parameter.
fn check_claims(
    key: &str,
    numbers: &BTreeMap<String, f64>,
    stage: &Stage,
    names: &[&str],
) -> Result<()> {
    let mut claims: BTreeMap<&str, &str> = BTreeMap::new();
    for pattern in numbers.keys() {
        let key = format!("{key}.{pattern}");
        let taken = taken(&key, pattern, names)?;
        if !taken.iter().any(|name| stage.trains(name)) {
            let want = format!(
                "parameters that the stage trains: {}",
                stage.trained_parts()
            );
            return Err(Error::setting(key, want, "frozen ones alone"));
        }
        for name in taken {
            if let Some(other) = claims.insert(name, pattern) {
                let found = format!("{name}, which {other} takes too");
                return Err(Error::setting(key, "parameters of its own", found));
            }
        }
    }
    Ok(())
}

fn check_muon(stage: &Stage, layout: &ParameterLayout, names: &[&str]) -> Result<()> {
    for pattern in &stage.muon {
        let taken = taken("muon", pattern, names)?;
        let specs = taken.iter().filter_map(|name| layout.get(name));
        let mut trained = specs.filter(|entry| stage.trains(&entry.spec.name));
        if !trained.any(|entry| stage.uses_muon(&entry.spec)) {
            let want = format!(
                "parts with matrices that the stage trains: {}",
                stage.trained_parts()
            );
            return Err(Error::setting(
                "muon",
                want,
                format!("{pattern}, which has none"),
            ));
        }
    }
    Ok(())
}

fn check_layers(stage: &Stage, names: &[&str]) -> Result<()> {
    for module in stage.layer_decay.keys() {
        let key = format!("layer_decay.{module}");
        if !LAYERED.contains(&module.as_str()) {
            let want = format!("modules out of {}", LAYERED.join(", "));
            return Err(Error::setting(key, want, with_near_miss(module, LAYERED)));
        }
        if !names
            .iter()
            .any(|name| block(name).is_some() && self::module(name) == module && stage.trains(name))
        {
            let want = format!(
                "a module with blocks that the stage trains: {}",
                stage.trained_parts()
            );
            return Err(Error::setting(
                key,
                want,
                format!("{module}, whose blocks are frozen"),
            ));
        }
    }
    let pattern = ParameterPattern::new(PATCH_EMBED);
    let mut embeds = names.iter().filter(|name| pattern.takes(name));
    if stage.patch_embed_factor != 1.0 && !embeds.any(|name| stage.trains(name)) {
        let want = format!("1 in a stage that does not train {PATCH_EMBED}");
        return Err(Error::setting(
            "patch_embed_factor",
            want,
            stage.patch_embed_factor,
        ));
    }
    Ok(())
}
