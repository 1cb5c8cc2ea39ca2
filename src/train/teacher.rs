//! The teacher of stages that distill: another tower from a folder, or a frozen copy of the tower.

use std::collections::BTreeSet;
use std::path::Path;

use super::checkpoint::Sink;
use super::from_weights::{pixels_of, vision_of};
use super::recipe::Recipe;
use keel_base::error::{Error, Result};
use keel_engine::executor::Executor;
use keel_engine::tape::ParameterLayout;
use keel_model::{TEACHER, TeacherConfig};
use keel_weights::{Folder, SubModel};

/// A parameter of the vision tower, and the teacher's of the same place.
fn of_teacher(parameter: &str) -> Option<String> {
    let rest = parameter.strip_prefix("vision.")?;
    Some(format!("{TEACHER}.{rest}"))
}

impl Recipe {
    /// Takes the settings of a folder's vision tower for the teacher's.
    ///
    /// # Errors
    /// As [`SubModel::vision`]; [`Error::Setting`] when the folder prepares images otherwise than the run does.
    pub(crate) fn begin_with_teacher(&mut self, path: &Path) -> Result<()> {
        let folder = Folder::open(path)?;
        let (part, _) = SubModel::vision(&folder)?;
        let own = self.pixels();
        // It sees what the tower sees.
        if let Some(theirs) = part
            .processor(&folder)?
            .map(|processor| pixels_of(&processor))
            && (theirs.mean, theirs.std) != (own.mean, own.std)
        {
            return Err(Error::setting(
                format!("--teacher {}", path.display()),
                format!(
                    "a tower for images of mean {:?} and std {:?}, as the run prepares them",
                    own.mean, own.std
                ),
                format!("mean {:?} and std {:?}", theirs.mean, theirs.std),
            ));
        }
        let part = part.at_size(self.model.vision.image_size)?;
        self.model.teacher = Some(TeacherConfig {
            tower: Some(vision_of(&part)),
        });
        Ok(())
    }

    /// Gives the weights of a teacher that comes from a folder; returns the names of their parameters.
    ///
    /// # Errors
    /// As [`SubModel::read`], and when the folder's settings are not the recipe's.
    pub(crate) fn give_teacher(
        &self,
        layout: &ParameterLayout,
        sink: Sink<'_>,
    ) -> Result<BTreeSet<String>> {
        let mut given = BTreeSet::new();
        let Some(path) = &self.teacher_weights else {
            return Ok(given);
        };
        let folder = Folder::open(Path::new(path))?;
        let part = SubModel::vision(&folder)?.0;
        let part = part.at_size(self.model.vision.image_size)?;
        let found = vision_of(&part);
        let wanted = self
            .model
            .teacher
            .as_ref()
            .and_then(|teacher| teacher.tower.as_ref());
        if wanted != Some(&found) {
            return Err(Error::setting(
                "model.teacher.tower",
                format!("the settings in {path}; --teacher {path} takes them from there"),
                "others",
            ));
        }
        let mut outcome = Ok(());
        part.read(&folder, &mut |parameter, first, piece| {
            let name = of_teacher(&parameter.spec.name).expect("a parameter of a vision tower");
            let entry = layout
                .get(&name)
                .expect("the teacher has the folder's settings");
            if outcome.is_ok() {
                outcome = sink(entry.offset + first, piece);
            }
            given.insert(name);
        })?;
        outcome.map(|()| given)
    }

    /// Makes the teacher a copy of the vision tower, where stage `index` is the first that distills from one.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub(crate) fn copy_teacher(
        &self,
        index: usize,
        layout: &ParameterLayout,
        executor: &dyn Executor,
    ) -> Result<()> {
        let teacher = self.model.teacher.as_ref();
        let is_copy = teacher.is_some_and(|teacher| teacher.tower.is_none());
        let first = self
            .stages
            .iter()
            .position(|stage| stage.distillation_weight > 0.0);
        if !is_copy || first != Some(index) {
            return Ok(());
        }
        for entry in layout.entries() {
            let name = of_teacher(&entry.spec.name);
            let Some(copy) = name.and_then(|name| layout.get(&name)) else {
                continue;
            };
            let mut values = vec![0.0; entry.spec.shape.numel()];
            executor.read_parameters(entry.offset, &mut values)?;
            executor.write_parameters(copy.offset, &values)?;
        }
        Ok(())
    }
}
