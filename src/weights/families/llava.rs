//! The connector of LLaVA 1.5 (Liu et al. 2024): two products on the patches of the tower's last layer but one.

use serde_json::{Map, Value as Json, json};

use super::internvl::ConnectorForm;
use super::key::{Key, write_key};
use keel_base::error::{Error, Result};
use keel_model::ConnectorConfig;

/// LLaVA-NeXT and OneVision name their tensors so, too, but cut images into tiles and end their rows with a token of their own.
const MODEL_TYPE: &str = "llava";

/// The layer where a file does not say it: the output of the block before the last.
const LAYER: i64 = -2;

pub(crate) const LLAVA: ConnectorForm = ConnectorForm {
    title: "Connector (two products, LLaVA 1.5)",
    model_type: Some(MODEL_TYPE),
    has_norm: false,
    keys: &[&[
        Key::OnlyText {
            name: "projector_hidden_act",
            want: "gelu",
            default: "gelu",
        },
        Key::OnlySwitch {
            name: "multimodal_projector_bias",
            want: true,
            default: true,
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
                config.select_layer = match settings.has("vision_feature_layer") {
                    true => settings.layer("vision_feature_layer")?,
                    false => LAYER,
                };
                Ok(())
            },
            write: |config| json!(config.select_layer),
        },
    ]],
    stem: "multi_modal_projector.",
    probe: "multi_modal_projector.linear_1.weight",
    names: &[("fc1", &[&["linear_1"]]), ("fc2", &[&["linear_2"]])],
};

/// `config.json` of such a connector alone.
pub(super) fn connector_config(config: &ConnectorConfig) -> Result<Map<String, Json>> {
    if config.unshuffle_factor != 1 {
        let want =
            "true where unshuffle_factor is above 1, which no published form has without a norm";
        return Err(Error::setting("model.connector.norm", want, false));
    }
    let mut map = Map::new();
    map.insert("model_type".into(), json!(MODEL_TYPE));
    for key in [
        "projector_hidden_act",
        "multimodal_projector_bias",
        "vision_feature_select_strategy",
        "vision_feature_layer",
    ] {
        map.insert(key.into(), write_key(LLAVA.keys, config, key));
    }
    Ok(map)
}
