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
        hold_control(recipe, stage, key)?;
    }
    Ok(())
}

/// Holds a control to its target.
fn hold_control(recipe: &Recipe, stage: &Stage, key: impl Fn(&str) -> String) -> Result<()> {
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
    let targets = recipe.stages.iter();
    let targets: Vec<&Stage> = targets.filter(|s| s.kind == StageKind::Target).collect();
    let names: Vec<&str> = targets.iter().map(|s| s.name.as_str()).collect();
    let Some(target) = targets.iter().find(|target| target.name == *name) else {
        let want = format!("a stage of kind target: one of {}", names.join(", "));
        return Err(Error::setting(
            key("control_of"),
            want,
            with_near_miss(name, &names),
        ));
    };
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

impl Recipe {
    /// Leaves controls out, and with them what other stages restore for their sake.
    pub(crate) fn leave_out_controls(&mut self) {
        self.stages.retain(|stage| stage.kind != StageKind::Control);
        for stage in &mut self.stages {
            stage.restore.clear();
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
