//! Whole models in the form of InternVL and SAIL-VL: a tower, a decoder and the connector between them in one folder.

use serde_json::{Map, Value as Json, json};

use super::super::Folder;
use super::super::hf_config::Settings;
use super::key::{Key, Keys, read_keys, write_key};
use super::llava;
use super::llava::LLAVA;
use super::names::Names;
use keel_base::error::{Error, Result};
use keel_model::{ConnectorConfig, OUTPUT_LAYER};

/// The key of the tower's settings, as in other models of several parts.
pub(crate) const VISION_KEY: &str = "vision_config";

/// The keys of the decoder's settings: its own and that of transformers.
pub(crate) const LANGUAGE_KEYS: [&str; 2] = ["llm_config", "text_config"];

/// The key of the image size that the model as a whole is shown.
pub(crate) const SIZE_KEY: &str = "force_image_size";

/// One form in which connectors are published.
#[derive(Debug)]
pub(crate) struct ConnectorForm {
    /// What it is, in a few words.
    pub title: &'static str,
    /// The `model_type` of the models that have it, where its tensors alone do not tell.
    pub model_type: Option<&'static str>,
    /// Whether a norm stands before its products.
    pub has_norm: bool,
    pub(super) keys: Keys<ConnectorConfig>,
    /// What stands before the names of its tensors, behind that of the model around it.
    pub stem: &'static str,
    /// The tensor by which folders that hold one are told from others.
    pub probe: &'static str,
    pub names: &'static [Names],
}

impl ConnectorForm {
    /// Reads the connector's settings out of those of the whole model.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] naming the key that Keel has no code for.
    pub fn read(&self, settings: &Settings) -> Result<ConnectorConfig> {
        let form = ConnectorConfig {
            unshuffle_factor: 1,
            select_layer: OUTPUT_LAYER,
            norm: self.has_norm,
        };
        read_keys(self.keys, &form, settings)
    }
}

/// The form of InternVL's and SAIL-VL's own code: norm and two products of a list of modules, the activation being the one that
/// has no tensor.
pub(crate) const OWN: ConnectorForm = ConnectorForm {
    title: "Connector (pixel unshuffle and mlp1)",
    model_type: None,
    has_norm: true,
    keys: &[
        &[
            DOWNSAMPLE_RATIO,
            // The first version leaves the grid turned.
            Key::OnlyText {
                name: "ps_version",
                want: "v2",
                default: "v1",
            },
        ],
        &[Key::Own {
            name: "select_layer",
            read: |settings, config| {
                config.select_layer = settings.layer("select_layer")?;
                Ok(())
            },
            write: |config| json!(config.select_layer),
        }],
    ],
    stem: "mlp1.",
    probe: "mlp1.0.weight",
    names: &[("norm", &[&["0"]]), ("fc1", &[&["1"]]), ("fc2", &[&["3"]])],
};

/// The form of InternVL in transformers, which unshuffles as the second version does.
const TRANSFORMERS: ConnectorForm = ConnectorForm {
    title: "Connector (pixel unshuffle and mlp1)",
    model_type: None,
    has_norm: true,
    keys: &[&[
        DOWNSAMPLE_RATIO,
        Key::OnlyText {
            name: "projector_hidden_act",
            want: "gelu",
            default: "gelu",
        },
        // Without the class token.
        Key::OnlyText {
            name: "vision_feature_select_strategy",
            want: "default",
            default: "default",
        },
        Key::Own {
            name: "vision_feature_layer",
            read: |settings, config| {
                config.select_layer = settings.layer("vision_feature_layer")?;
                Ok(())
            },
            write: |config| json!(config.select_layer),
        },
    ]],
    stem: "multi_modal_projector.",
    probe: "multi_modal_projector.layer_norm.weight",
    names: &[
        ("norm", &[&["layer_norm"]]),
        ("fc1", &[&["linear_1"]]),
        ("fc2", &[&["linear_2"]]),
    ],
};

/// Every form of connectors.
pub(crate) const CONNECTORS: [&ConnectorForm; 3] = [&OWN, &TRANSFORMERS, &LLAVA];

/// How modules are called that stand between tower and decoder in the models of others.
pub(crate) const OTHER_CONNECTORS: &[&str] = &[
    "aligner",
    "connector",
    "merger",
    "mlp1",
    "mm_projector",
    "modality_projection",
    "multi_modal_projector",
    "projector",
];

const DOWNSAMPLE_RATIO: Key<ConnectorConfig> = Key::Own {
    name: "downsample_ratio",
    read: |settings, config| {
        let ratio = settings.float("downsample_ratio", 0.5)?;
        let factor = (1.0 / ratio).round();
        if !(1.0..=64.0).contains(&factor) || (factor * ratio - 1.0).abs() > 1e-6 {
            let want = "1, 1/2, 1/3 or another part";
            return Err(settings.refuse("downsample_ratio", want, ratio));
        }
        config.unshuffle_factor = factor as usize;
        Ok(())
    },
    write: |config| json!(1.0 / config.unshuffle_factor as f64),
};

/// `config.json` of a connector alone.
///
/// # Errors
/// [`Error::Setting`] naming the setting that neither form can say.
pub fn connector_config(config: &ConnectorConfig) -> Result<Map<String, Json>> {
    if !config.norm {
        return llava::connector_config(config);
    }
    let mut keys = vec!["downsample_ratio", "ps_version"];
    if config.select_layer != OUTPUT_LAYER {
        keys.push("select_layer");
    }
    let written = keys.into_iter();
    let written = written.map(|name| (name.to_owned(), write_key(OWN.keys, config, name)));
    Ok(written.collect())
}

/// `config.json` of a whole model, which is shown images of `image_size` pixels in up to `tiles` tiles.
///
/// # Errors
/// [`Error::Setting`] where the connector is not of its form.
pub fn whole_config(
    vision: Map<String, Json>,
    language: Map<String, Json>,
    connector: &ConnectorConfig,
    (image_size, tiles): (usize, usize),
    template: &str,
) -> Result<Map<String, Json>> {
    if !connector.norm {
        let want = "true, which is all that a whole model of InternVL's form can say: export --part vision, language and connector";
        return Err(Error::setting("model.connector.norm", want, false));
    }
    let mut map = Map::new();
    let mut say = |key: &str, value: Json| map.insert(key.to_owned(), value);
    say("architectures", json!(["InternVLChatModel"]));
    say("model_type", json!("internvl_chat"));
    for (key, value) in connector_config(connector)? {
        say(&key, value);
    }
    say("select_layer", json!(connector.select_layer));
    say(SIZE_KEY, json!(image_size));
    say(TILED_KEY, json!(tiles > 0));
    say("use_thumbnail", json!(tiles > 0));
    say("min_dynamic_patch", json!(1));
    say(TILES_KEY, json!(tiles.max(1)));
    say("template", json!(template));
    let tied = language.get("tie_word_embeddings").cloned();
    say("tie_word_embeddings", tied.unwrap_or_default());
    say(VISION_KEY, vision.into());
    say(LANGUAGE_KEYS[0], language.into());
    Ok(map)
}

/// Whether images are cut into tiles.
const TILED_KEY: &str = "dynamic_image_size";

/// The most tiles of an image.
const TILES_KEY: &str = "max_dynamic_patch";

impl Folder {
    /// The rate of drop path that the folder's tower was last trained with (`drop_path_rate`); 0 where it does not say.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what is no such rate.
    pub fn drop_path_rate(&self) -> Result<f64> {
        let config = self.config();
        let tower = config.get(VISION_KEY).and_then(Json::as_object);
        let told = tower.unwrap_or(config).get("drop_path_rate");
        let Some(found) = told.filter(|found| !found.is_null()) else {
            return Ok(0.0);
        };
        let rate = found.as_f64().filter(|rate| (0.0..1.0).contains(rate));
        rate.ok_or_else(|| {
            let what = format!("{}: drop_path_rate", self.path().display());
            Error::setting(what, "from 0 to below 1", found)
        })
    }

    /// The most tiles that images are cut into for the model in it (InternVL's `dynamic_image_size`); 0 where they are not.
    pub fn most_tiles(&self) -> usize {
        let is_cut = self.config().get(TILED_KEY).and_then(Json::as_bool);
        let most = self.config().get(TILES_KEY).and_then(Json::as_u64);
        match (is_cut, most) {
            (Some(true), Some(most)) if most > 1 => most as usize,
            _ => 0,
        }
    }
}
