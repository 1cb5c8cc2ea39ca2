//! Finds a family's tensors in a folder.

use super::families::{LanguageForm, Names, row, rows_of};
use super::sub_model::Source;
use super::{Folder, TensorPlace};
use keel_base::error::{Error, Result, near_miss};
use keel_engine::ops::Heads;
use keel_engine::tape::ParameterEntry;

/// How rows of a family end that name PyTorch's multi-head attention: its query, key and value rows are one tensor, named
/// `in_proj_weight` or `in_proj_bias`.
const STACKED: &str = ".in_proj";

/// What a tensor's dimensions may be.
pub(super) enum Wanted {
    /// These, apart from ones in front.
    Dims(Vec<usize>),
    /// Exactly these.
    Exactly(Vec<usize>),
}

/// How a family's tensors are found.
pub(super) struct TensorResolver<'a> {
    pub folder: &'a Folder,
    pub names: &'static [Names],
    pub prefix: String,
    pub heads: Heads,
    /// Side of a patch.
    pub patch: usize,
    pub patches_by_pixel: bool,
    /// The form that a decoder has; it says where the output product is.
    pub decoder: Option<&'static LanguageForm>,
}

impl TensorResolver<'_> {
    /// The tensors of one parameter.
    pub fn source(&self, entry: &ParameterEntry) -> Result<Source> {
        let dims = entry.spec.shape.dims();
        let (stem, layer, ending) = row(&entry.spec.name);
        if stem == "head"
            && let Some(form) = self.decoder
        {
            return self.output_product(form, entry);
        }
        let ways = self
            .names
            .iter()
            .find(|(row, _)| *row == stem)
            .map_or(&[][..], |(_, ways)| ways);
        let full = |name: &str| format!("{}{}{ending}", self.prefix, name.replace("{l}", &layer));
        let is_there = |name: &str| self.folder.tensors().contains_key(&full(name));
        // The way that names this very tensor, or else the one that the folder uses for other layers: a tensor that is missing
        // is then missed under the name that it would have had.
        let way = ways
            .iter()
            .find(|way| way.iter().any(|name| is_there(name)))
            .or_else(|| {
                ways.iter()
                    .find(|way| way.iter().any(|name| self.is_spoken(name)))
            })
            .or(ways.first());
        let Some(way) = way else {
            return Err(Error::setting(
                format!(
                    "{}: parameter {}",
                    self.folder.path().display(),
                    entry.spec.name
                ),
                "a part that this family has",
                "one that its files have no name for",
            ));
        };
        let rows = rows_of(way.len(), dims, self.heads);
        let is_patches = stem == "patch_embed" && ending == ".weight";
        let mut tensors = Vec::new();
        for (name, rows) in way.iter().zip(rows) {
            let want = if is_patches && !self.patches_by_pixel {
                Wanted::Exactly(vec![rows, 3, self.patch, self.patch])
            } else {
                Wanted::Dims([&[rows], &dims[1..]].concat())
            };
            tensors.push(if name.ends_with(STACKED) {
                self.stacked(&full(name), &stem, dims)?
            } else {
                let name = full(name);
                let place = self.tensor(&name)?;
                self.hold_shape(&name, &place, &want)?;
                (name, place)
            });
        }
        Ok(Source {
            tensors,
            patch: (is_patches && self.patches_by_pixel).then_some(self.patch),
        })
    }

    /// The rows of the queries, of keys and values, or all, of dimensions `dims`, out of the tensor that stacks all three.
    fn stacked(&self, name: &str, stem: &str, dims: &[usize]) -> Result<(String, TensorPlace)> {
        let name = name.replace(&format!("{STACKED}."), &format!("{STACKED}_"));
        let place = self.tensor(&name)?;
        let all = Wanted::Exactly([&[self.heads.packed_width()], &dims[1..]].concat());
        self.hold_shape(&name, &place, &all)?;
        let first = match stem {
            "query" => 0,
            _ if dims[0] == self.heads.packed_width() => 0,
            _ => self.heads.query_width(),
        };
        let rows = place.rows(first, dims[0]);
        Ok((name, rows.expect("the tensor has the rows of all three")))
    }

    /// The output product of an untied decoder, beside the decoder or inside it.
    fn output_product(&self, form: &LanguageForm, entry: &ParameterEntry) -> Result<Source> {
        let beside = self.prefix.strip_suffix(form.trunk);
        let name = format!("{}{}", beside.unwrap_or(&self.prefix), form.head);
        let name = if self.folder.tensors().contains_key(&name) {
            name
        } else {
            form.head.to_owned()
        };
        let place = self.tensor(&name)?;
        self.hold_shape(
            &name,
            &place,
            &Wanted::Exactly(entry.spec.shape.dims().to_vec()),
        )?;
        Ok(Source {
            tensors: vec![(name, place)],
            patch: None,
        })
    }

    /// Whether any layer of the folder names a tensor this way.
    fn is_spoken(&self, name: &str) -> bool {
        let first = name.split("{l}").next().unwrap_or(name);
        let first = format!("{}{first}", self.prefix);
        self.folder
            .tensors()
            .keys()
            .any(|tensor| tensor.starts_with(&first))
    }

    fn tensor(&self, name: &str) -> Result<TensorPlace> {
        self.folder.tensors().get(name).cloned().ok_or_else(|| {
            let near = nearest_of(name, self.folder.tensors().keys().map(String::as_str));
            Error::content(
                self.folder.path().display(),
                format!("tensor {name} is missing{near}"),
                "check that config.json and the weights belong together",
            )
        })
    }

    pub fn hold_shape(&self, name: &str, place: &TensorPlace, want: &Wanted) -> Result<()> {
        let trim = |dims: &[usize]| -> Vec<usize> {
            dims.iter().copied().skip_while(|d| *d == 1).collect()
        };
        let (want, fits) = match want {
            Wanted::Exactly(dims) => (dims, *dims == place.shape),
            Wanted::Dims(dims) => (dims, trim(dims) == trim(&place.shape)),
        };
        if fits {
            return Ok(());
        }
        Err(Error::content(
            self.folder.path().display(),
            format!(
                "tensor {name} is {:?}, where config.json asks for {want:?}",
                place.shape
            ),
            "check that config.json and the weights belong together",
        ))
    }
}

/// The rest of a sentence on a tensor `name` that tells the name among `names` that is near it, if one is.
pub(super) fn nearest_of<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match near_miss(name, &names) {
        Some(near) => format!(", and the nearest name is {near}"),
        None => String::new(),
    }
}

/// What stands before the names of the part whose first tensor ends in one of `probes`.
pub(super) fn prefix(folder: &Folder, probes: &[&str]) -> Result<String> {
    let mut found: Vec<&str> = Vec::new();
    for name in folder.tensors().keys() {
        for probe in probes {
            if let Some(prefix) = name.strip_suffix(probe)
                && (prefix.is_empty() || prefix.ends_with('.'))
            {
                found.push(prefix);
            }
        }
    }
    match found[..] {
        [prefix] => Ok(prefix.to_owned()),
        [] => {
            let near = nearest_of(probes[0], folder.tensors().keys().map(String::as_str));
            Err(Error::content(
                folder.path().display(),
                format!("tensor {} is missing{near}", probes.join(" or ")),
                "check that config.json and the weights belong together",
            ))
        }
        [first, second, ..] => Err(Error::content(
            folder.path().display(),
            format!("holds the first tensor of this model twice, under {first:?} and {second:?}"),
            "give a folder with one model of a kind",
        )),
    }
}
