//! Keys that once had another name.

use keel::train::{RENAMED_PLAN_KEYS, RENAMED_RECIPE_KEYS};

use super::{refused_at_its_line, refused_set};

#[test]
fn every_old_name_is_refused_by_a_sentence_with_the_new_one() {
    for name in RENAMED_RECIPE_KEYS {
        let path = name.old.replace('*', "fine-grained");
        let set = if path.contains('=') {
            path.clone()
        } else {
            format!("{path}=1")
        };
        let last = path.rsplit(['.', '=']).next().unwrap();
        let old = format!("{last}, its old name");
        refused_set(&set, &[name.new, name.since, &old]);
    }
}

#[test]
fn an_old_name_in_a_file_is_refused_at_its_line() {
    for name in RENAMED_RECIPE_KEYS {
        let Some(old) = name.old.strip_prefix("stage.*.") else {
            continue;
        };
        if let Some(task) = old.strip_prefix("data.") {
            let to = format!("data = {{ {task} = 1.0, dense_captions");
            let shown = format!("stage fine-grained: {old}");
            refused_at_its_line(
                "\"fine-grained\"",
                "data = { dense_captions",
                &to,
                &[&shown, name.new],
            );
        } else {
            let shown = format!("stage fine-grained: {old}");
            let to = format!("{old} = 1");
            refused_at_its_line("\"fine-grained\"", "steps = 6", &to, &[&shown, name.new]);
        }
    }
    let mlp = ["mlp = \"swiglu\"", "mlp = \"swi_glu\""];
    refused_at_its_line(
        "[model.vision]",
        mlp[0],
        mlp[1],
        &["swiglu", "model.vision.mlp"],
    );
    let context = ["context_length = 32", "context = 32"];
    let parts = ["model.text.context", "context_length"];
    refused_at_its_line("[model.text]", context[0], context[1], &parts);
}

#[test]
fn no_new_name_is_an_old_one() {
    for names in [RENAMED_RECIPE_KEYS, RENAMED_PLAN_KEYS] {
        for name in names {
            let (table, _) = name.old.rsplit_once(['.', '=']).unwrap_or(("", name.old));
            let new = match table {
                "" => name.new.to_owned(),
                table => format!("{table}.{}", name.new),
            };
            assert!(names.iter().all(|other| other.old != new), "{new}");
        }
    }
}
