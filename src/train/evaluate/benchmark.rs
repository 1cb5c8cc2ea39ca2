//! Asks a run the questions of a benchmark and keeps every answer as soon as it is there.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::eval_run::EvalRun;
use crate::run::evaluations_folder;
use keel_base::error::{Error, Result};
use keel_base::files::{Writing, open_own};
use keel_data::benchmark::{Benchmark, BenchmarkItem};
use keel_eval::{AnswerKind, AnsweredItem, BenchmarkScore, Generator, Sampling, Wording, is_right};

/// Questions that are answered together.
const BATCH: usize = 16;

/// A benchmark that was answered.
#[derive(Clone, Debug)]
pub struct AnsweredBenchmark {
    /// Every question with its answer, in the file's order.
    pub items: Vec<AnsweredItem>,
    /// The file that keeps them.
    pub kept: PathBuf,
}

impl AnsweredBenchmark {
    /// What it gave.
    pub fn score(&self) -> BenchmarkScore {
        BenchmarkScore::of(&self.items)
    }
}

impl EvalRun {
    /// How questions are put by default: bare to a model that speaks the embedded tokeniser, which has learnt nothing else.
    pub fn default_wording(&self) -> Wording {
        match self.stored.tokenizer.template() {
            Some(_) => Wording::VlmEvalKit,
            None => Wording::Plain,
        }
    }

    /// Where the answers to `benchmark` are kept: in the run, or beside a checkpoint that lies outside one.
    fn answers_path(&self, benchmark: &Path) -> Result<PathBuf> {
        let folder = evaluations_folder(self.path())?;
        let stem = |path: &Path| {
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let name = format!("{}.{}.jsonl", stem(&self.result_path()), stem(benchmark));
        Ok(folder.join(name))
    }

    /// Answers every question of a benchmark greedily; the file with the answers holds all up to the row where an error stopped
    /// it.
    ///
    /// # Errors
    /// What is wrong with a row, by its number and index; whatever the executor reports.
    pub fn answer_benchmark(&self, path: &Path, wording: Wording) -> Result<AnsweredBenchmark> {
        let benchmark = Benchmark::open(path)?;
        let name = benchmark.name().to_owned();
        let kept = self.answers_path(path)?;
        let io = |problem| Error::io(&kept, "write", problem);
        let mut file = open_own(&kept, Writing::Replace).map_err(io)?;
        let mut generator = self.generator(BATCH, self.tiles(), Sampling::Greedy)?;
        let mut all = Vec::new();
        let mut rows = benchmark.fuse();
        let mut problem = None;
        while problem.is_none() {
            let mut items: Vec<BenchmarkItem> = Vec::with_capacity(BATCH);
            for row in rows.by_ref().take(BATCH) {
                match row {
                    Ok(item) => items.push(item),
                    Err(found) => {
                        problem = Some(found);
                        break;
                    }
                }
            }
            if items.is_empty() {
                break;
            }
            for answered in self.answer(&name, &items, wording, &mut generator)? {
                let line = serde_json::to_string(&answered).expect("an answer is plain data");
                writeln!(file, "{line}").map_err(io)?;
                all.push(answered);
            }
        }
        match problem {
            Some(problem) => Err(problem),
            None => Ok(AnsweredBenchmark { items: all, kept }),
        }
    }

    /// Answers at most [`BATCH`] questions.
    fn answer(
        &self,
        name: &str,
        items: &[BenchmarkItem],
        wording: Wording,
        generator: &mut Generator,
    ) -> Result<Vec<AnsweredItem>> {
        let mut images = Vec::new();
        let (mut prompts, mut asked) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let question = wording.question(item);
            // At least a word of an answer must fit too.
            if self.prompt(&question, 0).len() + 1 < self.tokens() {
                let shown = self.shown(&item.image(name)?, &question);
                prompts.push(self.prompt(&question, shown.count()));
                images.push(shown);
                asked.push(index);
            }
        }
        let mut predictions: Vec<Option<String>> = vec![None; items.len()];
        if !prompts.is_empty() {
            let answers = generator.generate_shown(&images, &prompts)?;
            for (index, ids) in asked.into_iter().zip(answers) {
                predictions[index] = Some(self.stored.tokenizer.decode(&ids));
            }
        }
        let answered = items.iter().zip(predictions).map(|(item, prediction)| {
            let kind = AnswerKind::of(item);
            AnsweredItem {
                index: item.index.clone(),
                category: item.category.clone(),
                kind,
                is_right: prediction.as_ref().is_some_and(|p| is_right(item, p)),
                prediction,
                answer: item.answer.clone(),
                chance: match kind {
                    AnswerKind::Choice => 1.0 / item.options.len() as f64,
                    AnswerKind::YesNo => 0.5,
                    AnswerKind::Short => 0.0,
                },
                image: blake3::hash(&item.image).to_hex()[..16].to_owned(),
            }
        });
        Ok(answered.collect())
    }
}
