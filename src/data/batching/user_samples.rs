//! The user's own samples as a task.

use std::sync::Arc;

use super::sample::{Sample, View};
use super::source::{Draw, SampleSettings, TaskSource};
use super::task::Task;
use crate::formats::pair::{Pair, PairRules, PairSource};
use crate::formats::skips::{Note, Reason};
use crate::images::augment::Augmentation;
use crate::images::image::Image;
use crate::images::image_view::{ImageOrigin, ImageSource, ImageView};
use keel_base::error::{Error, Result};
use keel_base::random::Stream;

/// See the module's documentation.
pub struct UserSamples {
    pairs: Arc<dyn PairSource>,
    /// The same, for what is kept of images.
    images: Arc<dyn ImageSource>,
    augmentation: Augmentation,
    most_images: usize,
}

impl UserSamples {
    /// The samples of `pairs`, whatever share `settings` say: that is the user's own business.
    pub fn new(pairs: Arc<dyn PairSource>, settings: &SampleSettings) -> UserSamples {
        UserSamples {
            images: Arc::new(pairs.clone()),
            pairs,
            augmentation: settings.augmentation,
            most_images: settings.images,
        }
    }

    /// The caption of a pair that can be trained on.
    fn checked(&self, pair: &Pair) -> Result<String> {
        let caption = pair.caption.trim().to_owned();
        if caption.is_empty() {
            return Err(Error::content(
                &pair.key,
                "its caption is empty",
                "write a caption or leave it out",
            ));
        }
        let images = pair.before.len() + 1;
        if images > self.most_images {
            return Err(Error::content(
                &pair.key,
                format!(
                    "it shows {images} images, where this stage takes {}",
                    self.most_images
                ),
                "set the stage's images, or split the sample",
            ));
        }
        Ok(caption)
    }

    /// What is shown of a pair's images, `before` those before the last. An image that stands alone can be kept; one of
    /// several, or in a marked place, is shown whole and never varied.
    fn view(
        &self,
        image: Option<Image>,
        before: Vec<Image>,
        (is_marked, rules): (bool, &PairRules),
        origin: ImageOrigin,
        look: &mut Stream,
    ) -> View {
        let Some(image) = image else {
            return View::None;
        };
        if is_marked {
            let images = before.into_iter().chain([image]);
            let images = images.map(|one| ImageView::whole(Arc::new(one)));
            return View::Images(images.collect());
        }
        self.varied(
            ImageView::whole(Arc::new(image)).keeping(origin),
            rules,
            look,
        )
    }

    fn varied(&self, image: ImageView, rules: &PairRules, look: &mut Stream) -> View {
        let image = image.in_tiles(rules.most_tiles);
        View::Image(if self.augmentation.geometry > 0.0 && rules.is_varied {
            let tint = self.augmentation.tint(look);
            image.varied(tint, look)
        } else {
            image
        })
    }
}

impl TaskSource for UserSamples {
    fn task(&self) -> Task {
        Task::SAMPLES
    }

    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn is_remote(&self) -> bool {
        self.pairs.is_remote()
    }

    fn sample(&self, item: usize, draw: &mut Draw<'_>) -> Result<Sample> {
        let origin = ImageOrigin {
            kept: draw.kept.clone(),
            source: self.images.clone(),
            item: self.pairs.first_of(item),
        };
        // Where something of the image is kept, the file is left alone until its pixels are asked for.
        let known = ImageView::kept(&origin);
        let mut pair = match known {
            Some(_) => self.pairs.words(item)?,
            None => self.pairs.get(item)?,
        };
        let caption = self.checked(&pair)?;
        let view = match known {
            Some(image) => self.varied(image, &pair.rules, draw.look),
            None => {
                let before = std::mem::take(&mut pair.before);
                let image = pair.image.take();
                self.view(
                    image,
                    before,
                    (pair.is_marked, &pair.rules),
                    origin,
                    draw.look,
                )
            }
        };
        let mut answers = std::iter::once(&caption).chain(pair.further.iter().map(|t| &t.answer));
        let first = (0..).find(|place| !pair.rules.unsupervised.contains(place));
        let learnt = answers.nth(first.unwrap_or(0)).cloned().unwrap_or_default();
        Ok(Sample {
            key: pair.key,
            task: Task::SAMPLES,
            question_kind: None,
            context: String::new(),
            question: pair.prompt.unwrap_or_default(),
            further: pair.further,
            system: pair.system,
            unsupervised: pair.rules.unsupervised,
            // One image can be contrasted with a caption: with one that is to be learnt.
            caption: if view.is_one() { learnt } else { String::new() },
            view,
            answer: caption,
        })
    }

    fn count(&self, item: usize, left_out: Option<(Reason, &str)>) -> Result<()> {
        self.pairs.count(item, left_out)
    }

    fn note(&self, item: usize, note: Note, name: &str) {
        self.pairs.note(item, note, name);
    }
}
