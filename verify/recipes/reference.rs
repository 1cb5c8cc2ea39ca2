//! docs/recipes.md is what the schema's doc comments say.

use std::path::Path;

use keel::train::{BUILT_IN, RENAMED_PLAN_KEYS, RENAMED_RECIPE_KEYS, Recipe};

#[test]
fn the_recipe_reference_is_what_the_schemas_doc_comments_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = tools::reference::render(root).unwrap();
    let found = std::fs::read_to_string(root.join(tools::reference::PAGE)).unwrap();
    assert!(
        found == page,
        "{} is out of date; {} writes it",
        tools::reference::PAGE,
        tools::reference::COMMAND
    );
    for (name, _) in BUILT_IN {
        let text = Recipe::load(name, &[]).unwrap().to_toml();
        for line in text.lines().filter(|line| line.contains(" = ")) {
            let key = line.split(" = ").next().unwrap();
            // Tasks stand in a list, keys in rows.
            let told = [format!("\n| `{key}` |"), format!("\n- `{key}`: ")];
            let is_told = told.iter().any(|told| page.contains(told.as_str()));
            assert!(
                is_told,
                "{key} is in no table of {}",
                tools::reference::PAGE
            );
        }
    }
    for name in RENAMED_RECIPE_KEYS.iter().chain(RENAMED_PLAN_KEYS) {
        let is_told = page.contains(&format!("`{}`", name.new));
        assert!(is_told, "{} is in no table", name.new);
    }
}
