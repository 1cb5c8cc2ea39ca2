//! The published sizes: parameter counts of the presets and of connectors between them, without allocating any.

use keel::model::{
    Alignment, ConnectorConfig, ModelConfig, connector, embed_tokens, language_head,
    language_preset, language_trunk, vision_preset, vision_tower,
};
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;

use crate::allocations::measure;

/// Names, ops and types of a declaration: far below the smallest preset's weights.
const MOST_BYTES: i64 = 16 << 20;

/// Elements that `record` declares, padding excluded.
fn count(record: impl FnOnce(&mut Tape)) -> usize {
    let (count, allocated) = measure(|| {
        let mut tape = Tape::declaring();
        record(&mut tape);
        ParameterLayout::new(&tape.specs()).count(|_| true)
    });
    assert!(
        allocated.peak_bytes < MOST_BYTES,
        "declaring took {} bytes",
        allocated.peak_bytes
    );
    count
}

fn vision(preset: &str) -> usize {
    let config = vision_preset(preset).expect("a preset");
    config.validate().expect("a preset is possible");
    count(|tape| {
        let shape = [1, 3, config.image_size, config.image_size];
        let images = tape.input("images", TensorType::f32(shape));
        vision_tower(tape, &config, images).expect("a preset records");
    })
}

fn language(preset: &str) -> usize {
    let config = language_preset(preset).expect("a preset");
    config.validate().expect("a preset is possible");
    count(|tape| {
        let tokens = tape.input("tokens", TensorType::i32([1, 8]));
        let x = embed_tokens(tape, &config, tokens).expect("a preset records");
        language_trunk(tape, &config, x, None, "language").expect("a preset records");
        language_head(tape, &config).expect("a preset records");
    })
}

/// A connector of factor 2.
fn connector_between(vision: &str, language: &str) -> usize {
    let config = ModelConfig {
        vision: vision_preset(vision).expect("a preset"),
        text: None,
        connector: ConnectorConfig {
            norm: true,
            unshuffle_factor: 2,
            select_layer: -1,
        },
        language: language_preset(language).expect("a preset"),
        teacher: None,
        embed_dim: 1024,
        align: Alignment::default(),
    };
    config.validate().expect("the presets go together");
    count(|tape| {
        let shape = [1, config.vision.patches(), config.vision.width];
        let features = tape.input("features", TensorType::f32(shape));
        let tokens = connector(tape, &config, features).expect("a preset records");
        assert_eq!(
            tape.shape(tokens).dims(),
            [1, config.image_tokens(), config.language.width]
        );
    })
}

#[test]
fn vision_presets_have_the_published_number_of_parameters() {
    assert_eq!(vision("sailvit-large"), 309_984_256);
    assert_eq!(vision("sailvit-huge"), 682_031_616);
    assert_eq!(vision("clip-large-14"), 303_179_776);
    assert_eq!(vision("siglip-so400m-14-384"), 412_987_248);
    assert_eq!(vision("internvit-300m-448"), 304_012_288);
    // 304,368,640 with the mask token, which only its pre-training uses and the preset leaves out.
    assert_eq!(vision("dinov2-large-14-518") + 1024, 304_368_640);
}

#[test]
fn language_presets_have_the_published_number_of_parameters() {
    assert_eq!(language("qwen2.5-0.5b"), 494_032_768);
    assert_eq!(language("qwen2.5-1.5b"), 1_543_714_304);
    assert_eq!(language("qwen2.5-7b"), 7_615_616_512);
    assert_eq!(language("qwen3-0.6b"), 596_049_920);
    assert_eq!(language("qwen3-1.7b"), 1_720_574_976);
}

#[test]
fn connectors_between_presets_have_the_published_number_of_parameters() {
    assert_eq!(
        connector_between("sailvit-huge", "qwen2.5-1.5b"),
        11_811_840
    );
    assert_eq!(connector_between("sailvit-huge", "qwen3-1.7b"), 16_793_600);
    assert_eq!(
        connector_between("sailvit-large", "qwen2.5-0.5b"),
        4_482_816
    );
}

#[test]
fn an_unknown_preset_is_refused_with_the_known_ones() {
    let problem = vision_preset("sailvit-tiny").unwrap_err().to_string();
    assert!(
        problem.contains("sailvit-tiny") && problem.contains("sailvit-large"),
        "{problem}"
    );
    let problem = language_preset("qwen9").unwrap_err().to_string();
    assert!(
        problem.contains("qwen9") && problem.contains("qwen3-0.6b"),
        "{problem}"
    );
}
