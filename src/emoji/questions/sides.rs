//! Questions about where things are: on which side of another, what is beside it, and whether that is so.

use super::maker::{Asked, Maker, position, yes_no};
use crate::scenes::{Arrangement, Scene, Side};

impl Maker<'_> {
    /// A scene of two to four for questions on sides, symmetrical in all four directions; often of coloured things, so
    /// that they can be distinguished by colour.
    fn sided(&mut self, primary: usize) -> Option<Scene> {
        let pool = self.pool;
        let mut shown = vec![primary];
        if self.text.chance(0.5) && !pool.colours.is_empty() {
            let colour = *self.text.pick(&pool.colours);
            shown.push(self.draw(&pool.by_colour[colour], &shown, |_| true)?);
        }
        let arrangement = *self.text.pick(&[
            Arrangement::Row2,
            Arrangement::Column2,
            Arrangement::Row3,
            Arrangement::Column3,
            Arrangement::Square,
            Arrangement::Square,
        ]);
        let mut shown = self.fill(&shown, arrangement.slots().len())?;
        self.text.shuffle(&mut shown);
        Some(self.compose(arrangement, &shown))
    }

    /// Names the object at `at`, by its colour when that tells it from all others.
    fn refer(&mut self, scene: &Scene, at: usize) -> String {
        let palette = |object: usize| {
            let concept = scene.objects[object].concept;
            self.emoji.concept(concept).palette(scene.vendor)
        };
        let unlike =
            |colour| (0..scene.objects.len()).all(|i| i == at || palette(i).share(colour) < 0.1);
        match palette(at).single() {
            Some(colour) if unlike(colour) && self.text.chance(0.6) => {
                format!("the {} thing", colour.word())
            }
            _ => format!("the {}", self.emoji.concept(scene.objects[at].concept).name),
        }
    }

    pub(super) fn side(&mut self, primary: usize, yes_or_no: bool) -> Option<Asked> {
        let scene = self.sided(primary)?;
        let (question, answer) = self.side_of(&scene, position(&scene, primary), yes_or_no)?;
        Some(Asked {
            scene,
            question,
            answer,
        })
    }

    /// Asks on which side of another the object `one` is. No two objects may share a name.
    pub(super) fn side_of(
        &mut self,
        scene: &Scene,
        one: usize,
        yes_or_no: bool,
    ) -> Option<(String, String)> {
        let clear: Vec<(usize, Side)> = (0..scene.objects.len())
            .filter(|&other| other != one)
            .filter_map(|other| {
                let side = Side::between(&scene.objects[one], &scene.objects[other])?;
                Some((other, side))
            })
            .collect();
        if clear.is_empty() {
            return None;
        }
        let (other, side) = *self.text.pick(&clear);
        let (what, of) = (self.refer(scene, one), self.refer(scene, other));
        Some(if yes_or_no {
            let yes = self.text.chance(0.5);
            let asked = if yes {
                side
            } else {
                let wrong: Vec<Side> = Side::ALL.into_iter().filter(|&s| s != side).collect();
                *self.text.pick(&wrong)
            };
            (format!("is {what} {} {of}?", asked.relation()), yes_no(yes))
        } else {
            (
                format!("where is {what} from {of}?"),
                side.word().to_owned(),
            )
        })
    }

    pub(super) fn neighbour(&mut self, primary: usize) -> Option<Asked> {
        let scene = self.sided(primary)?;
        let (question, answer) = self.neighbour_of(&scene, position(&scene, primary))?;
        Some(Asked {
            scene,
            question,
            answer,
        })
    }

    /// Asks for the object `what` by its side of another. No two objects may share a name.
    pub(super) fn neighbour_of(&mut self, scene: &Scene, what: usize) -> Option<(String, String)> {
        let mut askable = Vec::new();
        for of in (0..scene.objects.len()).filter(|&of| of != what) {
            let side = |other: usize| Side::between(&scene.objects[other], &scene.objects[of]);
            // Asked only where exactly one thing is on that side: two would both be right.
            let on_side = |side_of: Option<Side>| {
                (0..scene.objects.len())
                    .filter(|&other| other != of && side(other) == side_of)
                    .count()
            };
            if let Some(clear) = side(what)
                && on_side(Some(clear)) == 1
            {
                askable.push((of, clear));
            }
        }
        if askable.is_empty() {
            return None;
        }
        let (of, side) = *self.text.pick(&askable);
        let of = self.refer(scene, of);
        let answer = &self.emoji.concept(scene.objects[what].concept).name;
        Some((format!("what is {} {of}?", side.relation()), answer.clone()))
    }
}
