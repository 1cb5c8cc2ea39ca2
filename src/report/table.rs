//! The table at the end of a run: one row a stage.

use keel_eval::{Evaluation, SetEvaluation};

/// A plain-text table with aligned columns.
pub struct Table {
    /// Rows of cells, the headings first.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The first column to the left, numbers to the right.
    pub fn render(&self) -> String {
        self.aligned(|column| column > 0)
    }

    /// Every column to the left: words, not numbers.
    pub fn render_left(&self) -> String {
        self.aligned(|_| false)
    }

    fn aligned(&self, to_the_right: impl Fn(usize) -> bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|c| c.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let mut lines = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, width))| {
                    if to_the_right(column) {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            lines.push(cells.join("  ").trim_end().to_owned());
            if index == 0 {
                lines.push(
                    widths
                        .iter()
                        .map(|w| "─".repeat(*w))
                        .collect::<Vec<_>>()
                        .join("  "),
                );
            }
        }
        lines.join("\n")
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share))
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.3}"))
}

/// The evaluations of a run: images, then questions.
pub fn stage_table(evaluations: &[Evaluation]) -> String {
    let mut text = String::new();
    text += "Images (R@1, R@5: images → captions | captions → images; chance in the header)\n\n";
    text += &images(evaluations).render();
    let questions = questions(evaluations);
    if questions.rows.len() > 1 {
        text += "\n\nQuestions answered exactly (in brackets: the blind baseline, which sees no image)\n\n";
        text += &questions.render();
    }
    let distances = distances(evaluations);
    if distances.rows.len() > 1 {
        text += "\n\nDistance of visual from text tokens: in the language model's space, both of unit length; in the plane (SAIL-VL2, Table 7)\n\n";
        text += &distances.render();
    }
    text
}

pub(super) fn images(evaluations: &[Evaluation]) -> Table {
    let mut header: Vec<String> = vec!["stage".into(), "set".into()];
    let first = evaluations.iter().flat_map(|e| &e.sets).next();
    let (count, classes) = first.map_or((0, 0), |set| (set.count, set.classes));
    let chance = |of: usize, k: usize| match of {
        0 => String::new(),
        of => format!(" ({:.1} %)", 100.0 * k as f64 / of as f64),
    };
    header.push(format!("R@1{}", chance(count, 1)));
    header.push(format!("R@5{}", chance(count, 5)));
    header.push(format!("zero-shot{}", chance(classes, 1)));
    header.push("caption loss".into());
    let mut rows = vec![header];
    for evaluation in evaluations {
        for set in &evaluation.sets {
            rows.push(image_row(&evaluation.stage, set));
        }
    }
    Table { rows }
}

fn image_row(stage: &str, set: &SetEvaluation) -> Vec<String> {
    let both = |k: usize| match &set.recall {
        Some(recall) => format!(
            "{:.1} | {:.1} %",
            100.0 * recall.image_to_text[k],
            100.0 * recall.text_to_image[k]
        ),
        None => "–".into(),
    };
    vec![
        stage.to_owned(),
        format!("{}, {} concepts", set.vendor, set.split),
        both(0),
        both(1),
        percent(set.zero_shot),
        number(set.caption_loss),
    ]
}

pub(super) fn questions(evaluations: &[Evaluation]) -> Table {
    let mut header: Vec<String> = vec!["question".into()];
    let mut kinds: Vec<String> = Vec::new();
    let asked: Vec<_> = evaluations
        .iter()
        .flat_map(|evaluation| {
            evaluation
                .questions
                .iter()
                .map(move |q| (&evaluation.stage, q))
        })
        .collect();
    for (stage, question) in &asked {
        header.push(format!("{stage}, {}", question.set()));
        for kind in question.by_kind.keys() {
            if !kinds.contains(kind) {
                kinds.push(kind.clone());
            }
        }
    }
    let mut rows = vec![header];
    if asked.is_empty() {
        return Table { rows };
    }
    let cell = |(accuracy, guessed): (f64, f64)| {
        format!("{:.0} % ({:.0} %)", 100.0 * accuracy, 100.0 * guessed)
    };
    let mut all = vec!["all".to_owned()];
    all.extend(asked.iter().map(|(_, q)| cell((q.accuracy, q.text_only))));
    for kind in kinds {
        let mut row = vec![kind.replace('_', " ")];
        row.extend(
            asked
                .iter()
                .map(|(_, q)| q.by_kind.get(&kind).map_or("–".into(), |c| cell(*c))),
        );
        rows.push(row);
    }
    rows.push(all);
    Table { rows }
}

pub(super) fn distances(evaluations: &[Evaluation]) -> Table {
    let mut rows = vec![vec![
        "stage".into(),
        "nearest neighbour".into(),
        "sliced Wasserstein".into(),
        "nearest in the plane".into(),
    ]];
    for evaluation in evaluations {
        if evaluation.nearest_neighbour.is_some() {
            rows.push(vec![
                evaluation.stage.clone(),
                number(evaluation.nearest_neighbour),
                number(evaluation.sliced_wasserstein),
                number(evaluation.plane_nearest),
            ]);
        }
    }
    Table { rows }
}
