//! Where in the tower it pays: probe and distance from text of every block, a line for each stage that was measured.

use super::chart::{Chart, Line};
use super::record::RunRecord;
use keel_eval::Measurements;

/// Charts over blocks; nothing where no block was measured.
pub(super) fn layers(record: &RunRecord) -> String {
    let measured: Vec<&Measurements> = record
        .measurements
        .iter()
        .map(|(_, measured)| measured)
        .filter(|measured| !measured.layers.is_empty())
        .collect();
    let Some(first) = measured.first() else {
        return String::new();
    };
    let chart = |title: String, unit: &str, of: &dyn Fn(&Measurements, usize) -> Option<f64>| {
        let line = |measured: &&Measurements| {
            let blocks = 0..measured.layers.len();
            let points = blocks.filter_map(|block| Some([block as f64, of(measured, block)?]));
            Line {
                name: format!("after {}", measured.stage),
                pieces: vec![points.collect()],
            }
        };
        let lines: Vec<Line> = measured.iter().map(line).collect();
        let lines: Vec<Line> = lines
            .into_iter()
            .filter(|line| !line.pieces[0].is_empty())
            .collect();
        if lines.is_empty() {
            return String::new();
        }
        Chart {
            title,
            unit: unit.to_owned(),
            along: "block of the tower".to_owned(),
            lines,
            bands: Vec::new(),
            places: (0..first.layers.len())
                .map(|block| block.to_string())
                .collect(),
            is_log: false,
        }
        .figure()
    };
    let sets = first.layers[0].linear_probe.iter().enumerate();
    let mut charts: Vec<String> = sets
        .map(|(index, (name, _))| {
            let title = format!("Linear probe, {}, {} concepts", name.vendor, name.split);
            chart(title, "% right", &move |measured, block| {
                let (_, share) = measured.layers[block].linear_probe.get(index)?;
                Some(100.0 * share)
            })
        })
        .collect();
    let title = "Distance of a block's tokens from text, in the plane".to_owned();
    charts.push(chart(title, "plane units", &|measured, block| {
        measured.layers[block].plane_nearest
    }));
    format!("<div class=\"charts\">{}</div>\n", charts.concat())
}
