//! What a stage starts from: modules as an earlier stage left them, and a control of the target stage, which has its settings.

use toml::{Table, Value};

use super::stage::INITIAL;
use super::{MODULES, Recipe, Stage, StageKind};
use keel_base::error::{Error, Result, with_near_miss};

/// The keys that a control has of its own.
const OWN_KEYS: [&str; 4] = ["name", "kind", "restore", "control_of"];

/// Gives controls those settings of their targets that they leave out.
pub(super) fn complete_controls(table: &mut Table) {
    let Some(Value::Array(stages)) = table.get_mut("stage") else {
        return;
    };
    let all = stages.clone();
    let is_named = |stage: &&Value, name: &Value| stage.get("name").is_some_and(|own| own == name);
    for stage in stages.iter_mut().filter_map(Value::as_table_mut) {
        let Some(name) = stage.get("control_of").cloned() else {
            continue;
        };
        let target = all.iter().find(|stage| is_named(stage, &name));
        for (key, value) in target.and_then(Value::as_table).into_iter().flatten() {
            if !OWN_KEYS.contains(&key.as_str()) && !stage.contains_key(key) {
                stage.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Refuses what the stages of `recipe` cannot start from.
///
/// # Errors
/// [`Error::Setting`] whose subject is the setting's path, for example `stage.2.restore.vision`.
pub(super) fn validate_origins(recipe: &Recipe) -> Result<()> {
    for (index, stage) in recipe.stages.iter().enumerate() {
        let key = |name: &str| format!("stage.{index}.{name}");
        if stage.name == INITIAL {
            let want = "another name: restore calls so what the run begins with";
            return Err(Error::setting(key("name"), want, INITIAL));
        }
        for (module, origin) in &stage.restore {
            let key = key(&format!("restore.{module}"));
            if !MODULES.contains(&module.as_str()) {
                let want = format!("modules out of {}", MODULES.join(", "));
                return Err(Error::setting(key, want, with_near_miss(module, MODULES)));
            }
            if stage.reinitialize.contains(module) {
                let want = "a module that reinitialize does not name";
                return Err(Error::setting(key, want, module));
            }
            let before = recipe.stages[..index].iter().map(|s| s.name.as_str());
            let known: Vec<&str> = before.chain([INITIAL]).collect();
            if !known.contains(&origin.as_str()) {
                let want = format!("a stage before this one: one of {}", known.join(", "));
                return Err(Error::setting(key, want, with_near_miss(origin, &known)));
            }
        }
        hold_control(recipe, index, key)?;
    }
    Ok(())
}

/// Holds a control to its target.
fn hold_control(recipe: &Recipe, index: usize, key: impl Fn(&str) -> String) -> Result<()> {
    let stage = &recipe.stages[index];
    let is_control = stage.kind == StageKind::Control;
    let Some(name) = &stage.control_of else {
        return match is_control {
            true => Err(Error::setting(
                key("control_of"),
                "the target stage that a control is held against",
                "none",
            )),
            false => Ok(()),
        };
    };
    if !is_control {
        let want = "none in a stage that is not of kind control";
        return Err(Error::setting(key("control_of"), want, name));
    }
    // The run ends with its target: what is asked, served and exported is not the control's model.
    let targets = recipe.stages.iter().enumerate().skip(index + 1);
    let targets: Vec<(usize, &Stage)> = targets
        .filter(|(_, stage)| stage.kind == StageKind::Target)
        .collect();
    let names: Vec<&str> = targets.iter().map(|(_, s)| s.name.as_str()).collect();
    let Some((at, target)) = targets.iter().find(|(_, target)| target.name == *name) else {
        let want = format!(
            "a stage of kind target after this one: one of {}",
            names.join(", ")
        );
        return Err(Error::setting(
            key("control_of"),
            want,
            with_near_miss(name, &names),
        ));
    };
    hold_target(recipe, stage, (*at, target))?;
    let [own, of_target] = [stage, *target].map(|stage| {
        Table::try_from(stage).expect("a stage is made of tables, numbers and strings")
    });
    let mut keys = of_target.keys().chain(own.keys());
    let differing = keys.find(|key| {
        !OWN_KEYS.contains(&key.as_str()) && own.get(key.as_str()) != of_target.get(key.as_str())
    });
    let Some(name) = differing else {
        return Ok(());
    };
    let text = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    Err(Error::setting(
        key(name),
        format!("{}, as in {}", text(of_target.get(name)), target.name),
        text(own.get(name)),
    ))
}

/// Holds a target to what it is without its control: it starts from nothing that the control has changed.
fn hold_target(recipe: &Recipe, control: &Stage, (at, target): (usize, &Stage)) -> Result<()> {
    let changed = control.trains.iter().chain(control.restore.keys());
    let mut changed = changed.chain(&control.reinitialize);
    let is_left = |module: &&String| {
        !target.restore.contains_key(*module) && !target.reinitialize.contains(module)
    };
    if let Some(module) = changed.find(is_left) {
        return Err(Error::setting(
            format!("stage.{at}.restore"),
            format!(
                "{module}, which the control {} changes before it",
                control.name
            ),
            "without it",
        ));
    }
    let copies = recipe.model.teacher.as_ref();
    let copies = copies.is_some_and(|teacher| teacher.tower.is_none());
    let mut stages = recipe.stages.iter();
    let first = stages.find(|stage| stage.distillation_weight > 0.0);
    if copies && first.is_some_and(|stage| stage.kind == StageKind::Control) {
        return Err(Error::setting(
            format!("stage.{at}.distillation_weight"),
            format!(
                "0 with the control {}, which would be what the teacher is copied from",
                control.name
            ),
            target.distillation_weight,
        ));
    }
    Ok(())
}

impl Recipe {
    /// Leaves controls out, and with them what their targets restore for their sake.
    pub(crate) fn leave_out_controls(&mut self) {
        let controls = self
            .stages
            .iter()
            .filter_map(|stage| stage.control_of.clone());
        let controlled: Vec<String> = controls.collect();
        self.stages.retain(|stage| stage.kind != StageKind::Control);
        for stage in &mut self.stages {
            if controlled.contains(&stage.name) {
                stage.restore.clear();
            }
        }
    }

    /// Lets stages that restore what one of `left_out` left restore what the run begins with.
    pub(crate) fn restore_initial_for(&mut self, left_out: &[String]) {
        for stage in &mut self.stages {
            for origin in stage.restore.values_mut() {
                if left_out.contains(origin) {
                    INITIAL.clone_into(origin);
                }
            }
        }
    }
}
