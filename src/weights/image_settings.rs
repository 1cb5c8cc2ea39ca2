//! How a tower's images are prepared, where the settings of the model say it themselves: those of timm and of open_clip.
//!
//! Sources: `create_transform` of timm, for evaluation; `image_transform` of open_clip.

use serde_json::{Map, Value as Json};

use super::folder::Folder;
use super::processor::{ImageSize, Processor, Resized, three, three_above_0};
use keel_base::error::{Error, Result};

/// What the settings of a folder's model say of images; nothing where they say nothing.
///
/// # Errors
/// [`Error::Setting`] naming the key that is not understood or does not go with the tower.
pub(super) fn inner_processor(folder: &Folder, size: ImageSize) -> Result<Option<Processor>> {
    let object = |key: &str| folder.config().get(key).and_then(Json::as_object);
    let read = |key: &str, settings, read: fn(&ImageSettings) -> Result<Processor>| {
        let file = folder.path().join(folder.config_file());
        let what = format!("{}: {key}", file.display());
        let (ImageSize::Fixed(side) | ImageSize::OfProcessor(side)) = size;
        let images = ImageSettings {
            what,
            settings,
            side,
        };
        read(&images).map(Some)
    };
    if let Some(settings) = object("pretrained_cfg") {
        return read("pretrained_cfg", settings, of_timm);
    }
    match object("preprocess_cfg") {
        Some(settings) => read("preprocess_cfg", settings, of_open_clip),
        None => Ok(None),
    }
}

/// The object that says it.
struct ImageSettings<'a> {
    /// What messages call it.
    what: String,
    settings: &'a Map<String, Json>,
    /// The size of the tower's images.
    side: usize,
}

impl ImageSettings<'_> {
    fn refuse(&self, key: &str, want: impl ToString) -> Error {
        let found = self.settings.get(key).unwrap_or(&Json::Null);
        Error::setting(format!("{}: {key}", self.what), want.to_string(), found)
    }

    fn text(&self, key: &str, default: &'static str) -> Result<&str> {
        match self.settings.get(key) {
            None | Some(Json::Null) => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.refuse(key, "a text")),
        }
    }

    /// Whether images are scaled bicubically, else bilinearly.
    fn is_bicubic(&self) -> Result<bool> {
        match self.text("interpolation", "bicubic")? {
            "bicubic" => Ok(true),
            "bilinear" => Ok(false),
            _ => Err(self.refuse("interpolation", "bicubic or bilinear")),
        }
    }

    /// Refuses another size than the tower's under `key`, a number or a list of colours, height and width.
    fn hold_side(&self, key: &str) -> Result<()> {
        let is_side = |value: &Json| value.as_u64() == Some(self.side as u64);
        let agrees = match self.settings.get(key) {
            None | Some(Json::Null) => true,
            Some(Json::Array(list)) => list.iter().rev().take(2).all(is_side),
            Some(value) => is_side(value),
        };
        match agrees {
            true => Ok(()),
            false => Err(self.refuse(key, format!("the tower's {}", self.side))),
        }
    }

    fn processor(&self, resized: Resized) -> Result<Processor> {
        let settings = self.settings;
        Ok(Processor {
            mean: three(settings, &self.what, "mean")?,
            deviation: three_above_0(settings, &self.what, "std")?,
            side: self.side,
            resized,
            is_bicubic: self.is_bicubic()?,
        })
    }
}

/// The shorter edge, or both where it squashes, are scaled to the size divided by `crop_pct`, and the middle cut out.
fn of_timm(images: &ImageSettings) -> Result<Processor> {
    // Where it is not fixed, the tower's own.
    if images
        .settings
        .get("fixed_input_size")
        .and_then(Json::as_bool)
        == Some(true)
    {
        images.hold_side("input_size")?;
    }
    let share = match images.settings.get("crop_pct") {
        None | Some(Json::Null) => 0.875,
        Some(value) => value.as_f64().unwrap_or(0.0),
    };
    if !(0.01..=1.0).contains(&share) {
        return Err(images.refuse("crop_pct", "a number up to 1"));
    }
    let edge = (images.side as f64 / share).floor() as usize;
    match images.text("crop_mode", "center")? {
        "center" => images.processor(Resized::ShorterTo(edge)),
        "squash" if edge == images.side => images.processor(Resized::Both),
        "squash" => images.processor(Resized::BothTo(edge)),
        _ => Err(images.refuse("crop_mode", "center or squash")),
    }
}

fn of_open_clip(images: &ImageSettings) -> Result<Processor> {
    images.hold_side("size")?;
    match images.text("resize_mode", "shortest")? {
        "shortest" => images.processor(Resized::ShorterTo(images.side)),
        "squash" => images.processor(Resized::Both),
        _ => Err(images.refuse("resize_mode", "shortest or squash")),
    }
}
