//! Questions whose answers are all known: scored by one forward pass over question and image, as the likeliest of those
//! answers, so that thousands of questions cost what a few generated answers do.

use super::context::{BATCH, EvalContext, load_forward};
use keel_base::error::{Error, Result};
use keel_data::batch::BatchShape;
use keel_data::batches::{batch_of, batches};
use keel_data::eval_set::ClosedAnswers;
use keel_data::sample::Sample;
use keel_model::{BatchInputs, ModelInput, NextToken, record_prompt, record_text_prompt};

/// Lengths of sequences are rounded up to a multiple of this.
const TOKENS: usize = 8;

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClosedAnswer {
    /// Whether the right answer is the likeliest of the closed set; of equally likely ones the first counts.
    pub is_right: bool,
    /// −ln of the right answer's probability among all tokens, nats.
    pub loss: f64,
}

/// The first tokens of the answers of each kind.
#[derive(Clone, Debug)]
pub struct ClosedSets(Vec<(String, Vec<i32>)>);

impl ClosedSets {
    /// The kinds of `closed` whose answers begin with different tokens in the model's tokenizer, so that the first one tells
    /// which it is. The others have to be answered whole.
    pub fn new(context: EvalContext<'_>, closed: &[ClosedAnswers]) -> ClosedSets {
        let kinds = closed.iter().filter_map(|set| {
            let first = |answer: &String| context.tokenizer.encode(answer).first().copied();
            let firsts = set.answers.iter().map(first).collect::<Option<Vec<_>>>()?;
            let is_clear = (1..firsts.len()).all(|at| !firsts[..at].contains(&firsts[at]));
            is_clear.then(|| (set.kind.to_string(), firsts))
        });
        ClosedSets(kinds.collect())
    }

    /// The first tokens of the answers to a sample's question; nothing where it has no closed set.
    pub fn of(&self, sample: &Sample) -> Option<&[i32]> {
        let kind = sample.question_kind.as_deref()?;
        let found = self.0.iter().find(|(of, _)| of == kind);
        found.map(|(_, firsts)| &firsts[..])
    }
}

/// Answers `samples`, which all have a closed set among `sets` and either all an image or none.
///
/// # Errors
/// [`Error::Content`] when an answer is none of its set; whatever recording, loading or running reports.
pub fn answer_closed(
    context: EvalContext<'_>,
    sets: &ClosedSets,
    samples: &[Sample],
) -> Result<Vec<ClosedAnswer>> {
    let Some(first) = samples.first() else {
        return Ok(Vec::new());
    };
    let shape = shape_for(context, samples);
    let has_images = first.view.is_some();
    let mut session = load_forward(context, Vec::new(), |tape| {
        let record = if has_images {
            record_prompt
        } else {
            record_text_prompt
        };
        record(tape, context.config, &shape, NextToken::Logits)
    })?;
    let inputs = BatchInputs::of(session.program(), &[ModelInput::Index.name()])?;
    let mut answers = Vec::with_capacity(samples.len());
    for index in 0..batches(samples.len(), &shape) {
        let (batch, count) = batch_of(samples, index, &shape, context.tokenizer)?;
        let rows = &samples[index * BATCH..index * BATCH + count];
        let prompts: Vec<usize> = rows.iter().map(|row| prompt_of(context, row)).collect();
        let last = |row: usize| prompts[row % count] as i32 - 1;
        let places: Vec<i32> = (0..BATCH).map(last).collect();
        inputs.write(session.as_mut(), &batch)?;
        session.write_i32(ModelInput::Index.name(), &places)?;
        session.run()?;
        let logits = session.read_f32("logits")?;
        let vocabulary = logits.len() / BATCH;
        for (row, sample) in rows.iter().enumerate() {
            let right = batch.tokens[row * shape.tokens + prompts[row]];
            let of_row = &logits[row * vocabulary..(row + 1) * vocabulary];
            answers.push(score(
                sample,
                sets.of(sample).unwrap_or(&[]),
                right,
                of_row,
            )?);
        }
    }
    Ok(answers)
}

/// Tokens before a sample's answer.
fn prompt_of(context: EvalContext<'_>, sample: &Sample) -> usize {
    let conversation = sample.conversation(context.config.image_tokens());
    context.tokenizer.prompt(&conversation).len()
}

/// A batch of sequences that hold every sample whole.
fn shape_for(context: EvalContext<'_>, samples: &[Sample]) -> BatchShape {
    let image_tokens = context.config.image_tokens();
    let length = |sample: &Sample| {
        let sequence = context
            .tokenizer
            .sequence(&sample.conversation(image_tokens));
        sequence.ids.len()
    };
    let longest = samples.iter().map(length).max().unwrap_or(0);
    let caption = |sample: &Sample| context.tokenizer.caption(&sample.caption).len();
    let captions = samples.iter().map(caption).max().unwrap_or(0);
    context.batch_shape(BATCH, longest.next_multiple_of(TOKENS), captions.max(4))
}

fn score(sample: &Sample, closed: &[i32], right: i32, logits: &[f32]) -> Result<ClosedAnswer> {
    let of = |id: i32| f64::from(logits[id as usize]);
    if !closed.contains(&right) {
        return Err(Error::content(
            format!("the question {:?}", sample.question),
            format!("its answer {:?} is none of its closed set", sample.answer),
            "add the answer to the set",
        ));
    }
    let mut best = closed[0];
    for id in closed {
        if of(*id) > of(best) {
            best = *id;
        }
    }
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares = logits.iter().map(|x| f64::from(x - most).exp());
    let normaliser = f64::from(most) + shares.sum::<f64>().ln();
    Ok(ClosedAnswer {
        is_right: best == right,
        loss: normaliser - of(right),
    })
}
