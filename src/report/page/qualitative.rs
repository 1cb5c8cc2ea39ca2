//! What there is to look at: finds and confusions, attention over images, tokens in their plane.

use std::fmt::Write as _;

use super::html::{data_address, details};
use crate::sheet::encode_rgb;
use keel_engine::program::escape;
use keel_eval::{
    AttentionSample, Principal, QualitativeSamples, RetrievalExample, floats_of, rgb_of,
};

/// An image of an qualitative sample as an address; nothing where it cannot be read.
fn address(image: &str, side: usize) -> String {
    let png = rgb_of(image, side).and_then(|rgb| encode_rgb(side, side, &rgb).ok());
    png.map_or(String::new(), |png| data_address("image/png", &png))
}

/// Finds and confusions of one stage.
pub(super) fn finds(qualitative: &QualitativeSamples) -> String {
    let Some(retrieval) = &qualitative.retrieval else {
        return String::new();
    };
    let side = qualitative.side;
    let card = |found: &RetrievalExample| {
        let captions = found.found.iter().map(|caption| {
            let class = if *caption == found.caption {
                " class=\"right\""
            } else {
                ""
            };
            format!("<li{class}>{}</li>", escape(caption))
        });
        format!(
            "<li><img src=\"{}\" alt=\"{}\"><b>{}</b><br><span class=\"faint\">rank {} of {}; first are</span><ol>{}</ol></li>",
            address(&found.image, side),
            escape(&found.caption),
            escape(&found.caption),
            found.rank,
            retrieval.images,
            captions.collect::<String>()
        )
    };
    let cards = |all: &[RetrievalExample]| -> String { all.iter().map(card).collect() };
    let mut html = format!(
        "<p>{} {} images of concepts that were never trained on look for their captions.</p>\n<h3>Surest finds</h3><ul class=\"cards\">{}</ul>\n<h3>Worst misses</h3><ul class=\"cards\">{}</ul>\n",
        retrieval.images,
        escape(&retrieval.set.vendor),
        cards(&retrieval.best),
        cards(&retrieval.worst)
    );
    if !retrieval.confusions.is_empty() {
        html += "<h3>Commonest confusions of classes</h3><ul class=\"cards\">";
        for confusion in &retrieval.confusions {
            let _ = write!(
                html,
                "<li><img src=\"{}\" alt=\"one of them\"><b>{}</b> taken for <b>{}</b><br><span class=\"faint\">{} of {}</span></li>",
                address(&confusion.image, side),
                escape(&confusion.class),
                escape(&confusion.taken_for),
                confusion.count,
                confusion.of
            );
        }
        html += "</ul>\n";
    }
    html
}

/// An image with a number on each patch, the more the hotter; `mark` outlines one patch.
fn heat(image: &str, grid: usize, values: &[f32], mark: Option<usize>, label: &str) -> String {
    let most = values.iter().copied().fold(f32::MIN, f32::max);
    let least = values.iter().copied().fold(f32::MAX, f32::min);
    let span = (most - least).max(f32::MIN_POSITIVE);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {grid} {grid}\" role=\"img\" aria-label=\"{}\"><image href=\"{image}\" width=\"{grid}\" height=\"{grid}\"/>",
        escape(label)
    );
    for (patch, value) in values.iter().enumerate() {
        let share = (value - least) / span;
        if share > 0.03 {
            let _ = write!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"1\" height=\"1\" fill=\"var(--hot)\" fill-opacity=\"{:.2}\"/>",
                patch % grid,
                patch / grid,
                0.78 * share
            );
        }
    }
    if let Some(patch) = mark {
        let _ = write!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"1\" height=\"1\" fill=\"none\" stroke=\"#0b62b0\" stroke-width=\".18\"/>",
            patch % grid,
            patch / grid
        );
    }
    svg + "</svg>"
}

fn map(svg: &str, caption: &str) -> String {
    format!(
        "<figure>{svg}<figcaption>{}</figcaption></figure>",
        escape(caption)
    )
}

/// The mean over heads.
fn over_heads(shown: &AttentionSample) -> Vec<f32> {
    let patches = shown.similarity.len();
    let count = shown.heads.len().max(1) as f32;
    let mean = |patch: usize| {
        let heads = shown.heads.iter().filter_map(|head| head.get(patch));
        heads.sum::<f32>() / count
    };
    (0..patches).map(mean).collect()
}

/// One map a stage of the image `index`: the numbers that `of` gives, and the patch to outline.
fn by_stage(
    all: &[QualitativeSamples],
    index: usize,
    image: &str,
    what: &str,
    of: impl Fn(&AttentionSample) -> (Vec<f32>, Option<usize>),
) -> String {
    let maps = all.iter().filter_map(|qualitative| {
        let shown = qualitative.attention.get(index)?;
        let label = format!("{}: {what} after {}", shown.caption, qualitative.stage);
        let (values, mark) = of(shown);
        let svg = heat(image, shown.grid, &values, mark, &label);
        Some(map(&svg, &format!("{what}, {}", qualitative.stage)))
    });
    maps.collect()
}

/// Where the last block looks, stage by stage, and what is alike.
pub(super) fn attention(all: &[QualitativeSamples]) -> String {
    let Some(last) = all.last().filter(|last| !last.attention.is_empty()) else {
        return String::new();
    };
    let mut html = String::from(
        "<p>Where the tower's last block looks (attention that a patch receives, mean over heads), stage by stage; and, outlined, the patch that receives most, with the cosine of its feature and every other's. The hotter, the more; each map has its own scale.</p>\n",
    );
    for (index, shown) in last.attention.iter().enumerate() {
        let _ = writeln!(
            html,
            "<h3>{}</h3>\n<div class=\"maps\">",
            escape(&shown.caption)
        );
        let image = address(&shown.image, last.side);
        html += &by_stage(all, index, &image, "attention", |shown| {
            (over_heads(shown), None)
        });
        html += "</div>\n<div class=\"maps\">";
        html += &by_stage(all, index, &image, "likeness", |shown| {
            (shown.similarity.clone(), Some(shown.patch))
        });
        html += "</div>\n";
        let heads: String = shown
            .heads
            .iter()
            .enumerate()
            .map(|(head, values)| {
                let name = format!("head {}", head + 1);
                let label = format!("{}, {name} after {}", shown.caption, last.stage);
                map(&heat(&image, shown.grid, values, None, &label), &name)
            })
            .collect();
        let summary = format!("Head by head after {}", last.stage);
        html += &details(&summary, &format!("<div class=\"maps\">{heads}</div>\n"));
    }
    html
}

const MAP: f64 = 300.0;

/// Visual and text tokens of every stage in one plane.
pub(super) fn clouds(all: &[QualitativeSamples]) -> String {
    let mut stages = Vec::new();
    for qualitative in all {
        let Some(clouds) = &qualitative.tokens else {
            continue;
        };
        if let (Some(visual), Some(text)) = (floats_of(&clouds.visual), floats_of(&clouds.text))
            && clouds.width > 0
        {
            stages.push((qualitative.stage.as_str(), clouds.width, visual, text));
        }
    }
    let Some((_, width, ..)) = stages.first() else {
        return String::new();
    };
    let width = *width;
    stages.retain(|(_, other, ..)| *other == width);
    let rows: Vec<f32> = stages
        .iter()
        .flat_map(|(.., visual, text)| visual.iter().chain(text).copied())
        .collect();
    let plane = Principal::fit(&rows, width, 2);
    let places = plane.project(&rows);
    let (mut low, mut high) = ([f32::MAX; 2], [f32::MIN; 2]);
    for at in places.as_chunks::<2>().0 {
        for axis in 0..2 {
            low[axis] = low[axis].min(at[axis]);
            high[axis] = high[axis].max(at[axis]);
        }
    }
    let span = (high[0] - low[0])
        .max(high[1] - low[1])
        .max(f32::MIN_POSITIVE);
    let at = |row: &[f32; 2]| {
        let place = |axis: usize| {
            let middle = f64::from(low[axis] + high[axis]) / 2.0;
            let turned = if axis == 0 { 1.0 } else { -1.0 };
            MAP * (0.5 + 0.92 * turned * (f64::from(row[axis]) - middle) / f64::from(span))
        };
        [place(0), place(1)]
    };
    let mut html = String::from(
        "<p>Visual tokens of held-out images and rows of the language model's embedding table, both of unit length, on the two principal components of all of them over all stages: one plane for every stage, so that what moves is what moved.</p>\n<ul class=\"legend\"><li><i style=\"background:var(--c1)\"></i>visual tokens</li><li><i style=\"background:var(--c0)\"></i>text tokens</li></ul>\n<div class=\"charts\">",
    );
    for (stage, _, visual, text) in &stages {
        let mut svg = format!(
            "<svg class=\"chart\" style=\"min-width:0\" viewBox=\"0 0 {MAP} {MAP}\" role=\"img\" aria-label=\"Visual and text tokens after {}\">",
            escape(stage)
        );
        for (rows, colour) in [(text, "--c0"), (visual, "--c1")] {
            for row in plane.project(rows).as_chunks::<2>().0 {
                let [x, y] = at(row);
                let _ = write!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"var({colour})\" fill-opacity=\".55\"/>"
                );
            }
        }
        svg += "</svg>";
        let _ = writeln!(html, "<figure><h3>{}</h3>{svg}</figure>", escape(stage));
    }
    html + "</div>\n"
}
