//! What a folder says of how its tower's images are prepared: `preprocessor_config.json`, read and written. What the classes
//! of processors do with a size is stated by the families that are published with them.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::families::{ImageProcessor, plain, vision_forms};
use super::folder::{Folder, read_json};
use super::image_settings::inner_processor;
use keel_base::error::{Error, Result};

impl Folder {
    /// What the folder's `preprocessor_config.json` does with images for a tower of `size`; nothing where there is no such
    /// file.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the key that is not understood or does not go with the tower; [`Error::Io`] or
    /// [`Error::Content`] when the file cannot be read.
    pub fn processor(&self, size: ImageSize) -> Result<Option<Processor>> {
        let path = self.path().join("preprocessor_config.json");
        if !path.exists() {
            return inner_processor(self, size);
        }
        let config = read_json(&path)?;
        let (side, resized, is_bicubic) = scaling(&config, &path, size)?;
        let processor = |mean, deviation| Processor {
            mean,
            deviation,
            side,
            resized,
            is_bicubic,
        };
        let name = |key: &str| format!("{}: {key}", path.display());
        let is_off = |key: &str| config.get(key).and_then(Json::as_bool) == Some(false);
        if let Some(factor) = config
            .get("rescale_factor")
            .filter(|_| !is_off("do_rescale"))
        {
            let is_usual = factor
                .as_f64()
                .is_some_and(|factor| (factor * 255.0 - 1.0).abs() < 1e-6);
            if !is_usual {
                return Err(Error::setting(name("rescale_factor"), "1/255", factor));
            }
        }
        if is_off("do_rescale") {
            return Err(Error::setting(name("do_rescale"), "true", false));
        }
        if is_off("do_normalize") {
            return Ok(Some(processor([0.0; 3], [1.0; 3])));
        }
        let what = path.display().to_string();
        let mean = three(&config, &what, "image_mean")?;
        let deviation = three_above_0(&config, &what, "image_std")?;
        Ok(Some(processor(mean, deviation)))
    }
}

/// The three numbers of `key` in `config`, which messages call `what`.
pub(super) fn three(config: &Map<String, Json>, what: &str, key: &str) -> Result<[f32; 3]> {
    let numbers = config.get(key).and_then(Json::as_array);
    let numbers: Option<Vec<f32>> =
        numbers.and_then(|list| list.iter().map(|x| Some(x.as_f64()? as f32)).collect());
    let numbers = numbers.and_then(|list| <[f32; 3]>::try_from(list).ok());
    numbers
        .filter(|list| list.iter().all(|x| x.is_finite()))
        .ok_or_else(|| {
            let found = config.get(key).unwrap_or(&Json::Null);
            Error::setting(format!("{what}: {key}"), "three numbers", found)
        })
}

/// As [`three`], by which colours are divided.
pub(super) fn three_above_0(config: &Map<String, Json>, what: &str, key: &str) -> Result<[f32; 3]> {
    let numbers = three(config, what, key)?;
    if numbers.iter().all(|x| *x > 0.0) {
        return Ok(numbers);
    }
    let want = "three numbers above 0";
    Err(Error::setting(format!("{what}: {key}"), want, "others"))
}

/// The image size that a tower's positions are for, and whether others go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSize {
    /// This one alone, pixels: the file has to agree.
    Fixed(usize),
    /// Whichever the file says, since the family's own code scales the positions to it; this one where it says none.
    OfProcessor(usize),
}

/// How a tower's images are prepared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processor {
    /// Taken from each colour, values from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour is divided by after that.
    pub deviation: [f32; 3],
    /// Height and width of what comes out, pixels.
    pub side: usize,
    /// How the image is scaled to that.
    pub resized: Resized,
    /// Whether scaling is bicubic, else bilinear.
    pub is_bicubic: bool,
}

/// How an image is scaled to a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// Both edges to the square's.
    Both,
    /// Both edges to this many pixels, and the middle cut out.
    BothTo(usize),
    /// The shorter edge to this many pixels, and the middle cut out.
    ShorterTo(usize),
}

impl Resized {
    /// The same with `scaled` lengths.
    pub fn map(self, scaled: impl Fn(usize) -> usize) -> Resized {
        match self {
            Resized::Both => Resized::Both,
            Resized::BothTo(edge) => Resized::BothTo(scaled(edge)),
            Resized::ShorterTo(edge) => Resized::ShorterTo(scaled(edge)),
        }
    }
}

/// How a processor scales images: [`Processor::side`], [`Processor::resized`] and [`Processor::is_bicubic`].
fn scaling(
    config: &Map<String, Json>,
    path: &Path,
    size: ImageSize,
) -> Result<(usize, Resized, bool)> {
    let name = |key: &str| format!("{}: {key}", path.display());
    let refuse = |key: &str, want: String| {
        let found = config.get(key).unwrap_or(&Json::Null);
        Err(Error::setting(name(key), want, found))
    };
    let number = |value: &Json| value.as_u64().map(|number| number as usize);
    // A size is a number, or edges by name.
    let edges = |key: &str| -> Option<[usize; 2]> {
        let size = config.get(key)?;
        let edge = |edge: &str| size.get(edge).and_then(number);
        let square = number(size).map(|edge| [edge; 2]);
        square.or_else(|| Some([edge("height")?, edge("width")?]))
    };
    let flag = |key: &str| config.get(key).and_then(Json::as_bool);
    if flag("do_resize") == Some(false) {
        return refuse("do_resize", "true".to_owned());
    }
    let is_bicubic = match config.get("resample").map(Json::as_u64) {
        None | Some(Some(3)) => true,
        Some(Some(2)) => false,
        Some(_) => return refuse("resample", "2 (bilinear) or 3 (bicubic)".to_owned()),
    };
    let kind = ["image_processor_type", "feature_extractor_type"];
    let kind = kind.iter().find_map(|key| config.get(*key)?.as_str());
    // These read a bare number as the shorter edge, the others as both.
    let by_shorter = kind.is_some_and(|kind| {
        let mut classes = processors().filter(|class| class.by_shorter_edge);
        classes.any(|class| kind.contains(class.marker))
    });
    let shorter = config.get("size").and_then(|size| match size {
        Json::Number(_) if by_shorter => number(size),
        size => size.get("shortest_edge").and_then(number),
    });
    let crops = flag("do_center_crop").unwrap_or(config.contains_key("crop_size"));
    let goes = |[height, width]: [usize; 2]| match size {
        ImageSize::Fixed(side) => [height, width] == [side; 2],
        ImageSize::OfProcessor(_) => height == width && height > 0,
    };
    let (own, wanted) = match size {
        ImageSize::Fixed(side) => (side, format!("the tower's {side}")),
        ImageSize::OfProcessor(side) => (side, "a square".to_owned()),
    };
    let cut = edges("crop_size").filter(|crop| crops && goes(*crop));
    let cut = cut.map(|[side, _]| side);
    match (shorter, edges("size")) {
        (Some(edge), _) => match edges("crop_size").filter(|_| crops) {
            Some(crop) if goes(crop) && edge >= crop[0] => {
                Ok((crop[0], Resized::ShorterTo(edge), is_bicubic))
            }
            Some(_) => refuse("crop_size", format!("{wanted}, and no more than size")),
            None => refuse(
                "do_center_crop",
                "true where size is a shortest_edge".to_owned(),
            ),
        },
        (None, Some([height, width])) if height == width && cut.is_some_and(|cut| height > cut) => {
            let side = cut.unwrap_or(own);
            Ok((side, Resized::BothTo(height), is_bicubic))
        }
        (None, Some(edges)) if goes(edges) => Ok((edges[0], Resized::Both, is_bicubic)),
        (None, Some(_)) => refuse("size", wanted),
        // No size at all: the tower's own, cut out of the middle.
        (None, None) if !config.contains_key("size") => {
            Ok((own, Resized::ShorterTo(own), is_bicubic))
        }
        (None, None) => refuse(
            "size",
            "a number, height and width, or a shortest_edge".to_owned(),
        ),
    }
}

/// How the images were prepared in training: `preprocessor_config.json`. The class is the first of the families' that scales
/// images so.
pub fn processor_config(processor: &Processor) -> Map<String, Json> {
    let mut classes = processors();
    let cuts = processor.resized != Resized::Both;
    let class = classes.find(|class| match processor.resized {
        Resized::Both => !class.by_shorter_edge,
        Resized::BothTo(_) => class.cuts_of_both,
        Resized::ShorterTo(_) => class.by_shorter_edge,
    });
    let class = class.expect("there are families of all sorts").class;
    let square = |side: usize| json!({ "height": side, "width": side });
    let mut map = Map::new();
    let mut say = |key: &str, value: Json| map.insert(key.to_owned(), value);
    say("image_processor_type", json!(class));
    say("do_convert_rgb", json!(true));
    say("do_resize", json!(true));
    say(
        "size",
        match processor.resized {
            Resized::ShorterTo(edge) => json!({ "shortest_edge": edge }),
            Resized::BothTo(edge) => square(edge),
            Resized::Both => square(processor.side),
        },
    );
    say("resample", json!(if processor.is_bicubic { 3 } else { 2 }));
    say("do_rescale", json!(true));
    say("rescale_factor", json!(1.0 / 255.0));
    say("do_normalize", json!(true));
    say("image_mean", json!(processor.mean.map(plain)));
    say("image_std", json!(processor.deviation.map(plain)));
    if cuts {
        say("do_center_crop", json!(true));
        say("crop_size", square(processor.side));
    }
    map
}

/// The processors of all families, in their order.
fn processors() -> impl Iterator<Item = &'static ImageProcessor> {
    vision_forms().map(|form| form.processor)
}
