//! Images become numbers as the tower's published processor makes them, to the rounding of f32.

use std::fs;
use std::path::PathBuf;

use keel::data::image::Image;
use keel::data::pixels::Fit;
use keel::data::resample::Filter;
use keel::train::{PublishedWeights, Recipe};
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use super::hub;

/// Made by tools/golden_processors.py with transformers and Pillow.
const GOLDENS: &[u8] = include_bytes!("../goldens/processors/pictures.safetensors");

fn settings(kind: &str) -> PathBuf {
    let goldens = hub("").join("../processors");
    goldens.join(kind).join("preprocessor_config.json")
}

/// A recipe on a tower for images of 32 pixels, with this processor.
fn recipe(processor: &str) -> keel::error::Result<Recipe> {
    let tower = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(hub("clip").join(name), tower.path().join(name)).unwrap();
    }
    fs::write(tower.path().join("preprocessor_config.json"), processor).unwrap();
    let mut recipe = Recipe::load("tiny", &[]).unwrap();
    recipe.begin_from(&PublishedWeights {
        vision: Some(tower.path().to_owned()),
        ..PublishedWeights::default()
    })?;
    Ok(recipe)
}

/// A recipe on a golden folder whose settings are changed at `key` of their object of images.
fn recipe_of(
    family: &str,
    object: &str,
    change: Option<(&str, Json)>,
) -> keel::error::Result<Recipe> {
    let tower = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(hub(family)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, tower.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    if let Some((key, value)) = change {
        let names = ["config.json", "open_clip_config.json"].map(|name| tower.path().join(name));
        let path = names.iter().find(|path| path.exists()).unwrap();
        let mut config: Json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        config[object][key] = value;
        fs::write(path, config.to_string()).unwrap();
    }
    let mut recipe = Recipe::load("tiny", &[]).unwrap();
    recipe.begin_from(&PublishedWeights {
        vision: Some(tower.path().to_owned()),
        ..PublishedWeights::default()
    })?;
    Ok(recipe)
}

#[test]
fn settings_of_timm_and_open_clip_say_how_images_are_prepared() {
    let (timm, open_clip) = ("pretrained_cfg", "preprocess_cfg");
    // 32 pixels are nine tenths of 35.
    let pixels = recipe_of("timm-vit", timm, None).unwrap().pixels();
    assert_eq!(pixels.fit, Fit::CropFrom(35));
    assert_eq!((pixels.mean, pixels.std), ([0.5; 3], [0.5; 3]));
    assert_eq!(pixels.filter, Filter::Bicubic);
    let pixels = recipe_of("open-clip", open_clip, None).unwrap().pixels();
    assert_eq!(pixels.fit, Fit::Crop);
    assert_eq!(pixels.mean[0], 0.481_454_66);
    for (family, object, key, value, fit, filter) in [
        (
            "timm-vit",
            timm,
            "crop_pct",
            json!(1.0),
            Fit::Crop,
            Filter::Bicubic,
        ),
        (
            "timm-vit",
            timm,
            "interpolation",
            json!("bilinear"),
            Fit::CropFrom(35),
            Filter::Bilinear,
        ),
        (
            "timm-vit",
            timm,
            "crop_mode",
            json!("squash"),
            Fit::StretchFrom(35),
            Filter::Bicubic,
        ),
        (
            "open-clip",
            open_clip,
            "resize_mode",
            json!("squash"),
            Fit::Stretch,
            Filter::Bicubic,
        ),
    ] {
        let pixels = recipe_of(family, object, Some((key, value)))
            .unwrap()
            .pixels();
        assert_eq!((pixels.fit, pixels.filter), (fit, filter), "{key}");
    }
    for (family, object, key, value) in [
        ("timm-vit", timm, "crop_mode", json!("border")),
        ("timm-vit", timm, "crop_pct", json!(1.5)),
        ("timm-vit", timm, "interpolation", json!("random")),
        ("timm-vit", timm, "input_size", json!([3, 48, 48])),
        ("timm-vit", timm, "std", json!([0.5, 0.0, 0.5])),
        ("open-clip", open_clip, "resize_mode", json!("longest")),
        ("open-clip", open_clip, "size", json!(48)),
    ] {
        let problem = recipe_of(family, object, Some((key, value)))
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains(&format!("{object}: {key}: expected")),
            "{problem}"
        );
    }
}

#[test]
fn images_become_the_numbers_that_published_processors_make_of_them() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    let inputs: Vec<&str> = goldens
        .names()
        .into_iter()
        .filter_map(|name| name.strip_prefix("input."))
        .collect();
    assert_eq!(inputs.len(), 5);
    for kind in ["clip", "siglip", "dinov2", "deit", "bilinear"] {
        let pixels = recipe(&fs::read_to_string(settings(kind)).unwrap())
            .unwrap()
            .pixels();
        for size in &inputs {
            let view = goldens.tensor(&format!("input.{size}")).unwrap();
            let image = Image {
                width: view.shape()[1] as u32,
                height: view.shape()[0] as u32,
                rgba: view.data().to_vec(),
            };
            let found = pixels.prepared(&image, 32);
            let found = found.to_chw(pixels.mean, pixels.std);
            let view = goldens.tensor(&format!("{kind}.{size}")).unwrap();
            assert_eq!(view.shape(), [3, 32, 32]);
            let numbers = view.data().chunks_exact(4);
            let wanted = numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                // A step of one in 255 is 0.0145 or more; the order of scaling and division is worth a few roundings.
                assert!(
                    (found - wanted).abs() <= 8.0 * f32::EPSILON * wanted.abs().max(1.0),
                    "{kind} {size} [{index}]: {found} and {wanted}"
                );
            }
        }
    }
}

#[test]
fn a_processor_that_does_not_go_with_the_tower_is_refused_by_its_key() {
    let numbers = "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]";
    let clip = "\"image_processor_type\": \"CLIPImageProcessor\"";
    for (further, wanted) in [
        (
            "\"resample\": 1",
            "resample: expected 2 (bilinear) or 3 (bicubic), found 1",
        ),
        (
            "\"do_resize\": false",
            "do_resize: expected true, found false",
        ),
        (
            "\"size\": {\"height\": 48, \"width\": 48}",
            "size: expected the tower's 32",
        ),
        ("\"size\": 24", "size: expected the tower's 32, found 24"),
        (
            "\"size\": {\"longest_edge\": 32}",
            "size: expected a number, height and width",
        ),
        (
            "\"size\": {\"shortest_edge\": 32}",
            "do_center_crop: expected true",
        ),
        (
            "\"size\": {\"shortest_edge\": 32}, \"crop_size\": 30",
            "crop_size: expected the tower's 32",
        ),
        (
            "\"size\": {\"shortest_edge\": 30}, \"crop_size\": 32",
            "crop_size: expected the tower's 32, and no more than size",
        ),
    ] {
        let problem = recipe(&format!("{{{numbers}, {further}}}")).unwrap_err();
        let problem = problem.to_string();
        assert!(problem.contains(wanted), "{further}: {problem}");
    }
    // A bare number is the shorter edge to some processors, both to the others.
    for (kind, fit) in [(clip, "crop"), ("\"x\": 1", "stretch")] {
        let text = format!("{{{numbers}, {kind}, \"size\": 32, \"crop_size\": 32}}");
        let recipe = recipe(&text).unwrap();
        let written = recipe.to_toml();
        assert!(written.contains(&format!("fit = \"{fit}\"")), "{written}");
        assert_eq!(Recipe::parse("again", &written, &[]).unwrap(), recipe);
    }
}
