//! The tasks' samples. All of them are made of the same scenes, those of the run's seed: the share of the data that a recipe
//! takes is one of images, whatever is said of them.

use std::sync::Arc;

use super::image::{Look, Style};
use super::questions::ask_several;
use super::scene::{PANELS, Scene};
use super::tasks::{self, PANELS_TASKS};
use super::texts::{dense_caption, facts, short_caption};
use keel_base::error::Result;
use keel_data::chat::Turn;
use keel_data::sample::{Sample, View};
use keel_data::source::{Draw, SampleSettings, TaskSource};
use keel_data::task::Task;

/// Scenes of a run that takes all of the data.
const SCENES: usize = 1 << 16;

/// Share of the texts of [`tasks::PANELS_FACTS`] that are said again in order; the others are asked about.
const SAID_AGAIN: f32 = 0.25;

/// A source for each task of this world. Scenes are those of the run's `seed`; every smaller share of them is part of every
/// larger one.
pub fn task_sources(seed: u64, settings: &SampleSettings) -> Vec<Arc<dyn TaskSource>> {
    let settings = *settings;
    PANELS_TASKS
        .map(|task| -> Arc<dyn TaskSource> {
            Arc::new(PanelsTask {
                task,
                seed,
                settings,
            })
        })
        .into()
}

/// One task of this world.
struct PanelsTask {
    task: Task,
    seed: u64,
    settings: SampleSettings,
}

impl TaskSource for PanelsTask {
    fn task(&self) -> Task {
        self.task
    }

    fn len(&self) -> usize {
        ((SCENES as f64 * self.settings.share).ceil() as usize).clamp(1, SCENES)
    }

    fn sample(&self, item: usize, draw: &mut Draw<'_>) -> Result<Sample> {
        let scene = Scene::of_training(self.seed, item as u64);
        let mut sample = said(self.task, &scene);
        match self.task {
            tasks::PANELS_SHORT => sample.answer = short_caption(&scene),
            tasks::PANELS_DENSE => sample.answer = dense_caption(&scene),
            tasks::PANELS_FACTS if draw.text.chance(SAID_AGAIN) => {
                let is_dense = draw.text.chance(0.5);
                sample.answer = if is_dense {
                    dense_caption
                } else {
                    short_caption
                }(&scene);
            }
            _ => self.ask(&scene, &mut sample, draw),
        }
        sample.caption = match self.task {
            tasks::PANELS_SHORT => sample.answer.clone(),
            tasks::PANELS_FACTS => String::new(),
            _ => dense_caption(&scene),
        };
        if self.task == tasks::PANELS_FACTS {
            let mut order: [usize; PANELS] = std::array::from_fn(|at| at);
            draw.text.shuffle(&mut order);
            sample.context = facts(&scene, order);
            sample.unsupervised = vec![Sample::ANSWERS_ALONE];
        } else {
            let strength = self.settings.augmentation.geometry;
            let look = Look::draw(Style::Light, strength, draw.look);
            sample.view = look.view(scene);
        }
        Ok(sample)
    }
}

impl PanelsTask {
    /// As many questions as are wanted and fit.
    fn ask(&self, scene: &Scene, sample: &mut Sample, draw: &mut Draw<'_>) {
        let asked = ask_several(scene, self.settings.turns, draw.text).into_iter();
        for (place, (kind, Turn { question, answer })) in asked.enumerate() {
            if place == 0 {
                sample.question_kind = Some(kind.into());
                (sample.question, sample.answer) = (question, answer);
                continue;
            }
            sample.further.push(Turn { question, answer });
            if !(draw.fits)(sample) {
                sample.further.pop();
                break;
            }
        }
    }
}

/// A sample of `task` that says nothing yet.
pub(super) fn said(task: Task, scene: &Scene) -> Sample {
    Sample {
        // What the image shows, however it is drawn.
        key: dense_caption(scene).trim_start().to_owned(),
        task,
        question_kind: None,
        view: View::None,
        context: String::new(),
        question: String::new(),
        answer: String::new(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption: String::new(),
    }
}
