//! `keel features`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::values::{count, described};
use super::{ComputeArgs, heading, print_warnings};
use keel_base::error::{Error, Result};
use keel_eval::FeatureForm;
use keel_train::EvalTower;

/// Options of `keel features`.
#[derive(Debug, Args)]
pub(super) struct FeaturesArgs {
    /// A Hugging Face folder with a vision tower.
    #[arg(value_name = "DIR")]
    tower: PathBuf,
    /// Image files.
    images: Vec<PathBuf>,
    /// A file with further image files, one a line.
    #[arg(long, value_name = "FILE", help_heading = heading::RUN)]
    list: Option<PathBuf>,
    /// The file to write: an array of numpy's form, f32 [images, C], or [images, T, C] of tokens. It must not be there yet.
    #[arg(long, value_name = "FILE", help_heading = heading::RUN)]
    out: PathBuf,
    /// What is written of each image.
    #[arg(long, value_name = "FORM", default_value = "mean",
        value_parser = described(&FeatureForm::ALL, FeatureForm::name, FeatureForm::about), help_heading = heading::RUN)]
    form: FeatureForm,
    /// Image resolution, if it differs from the tower's own.
    #[arg(long, value_name = "PIXELS", value_parser = count, help_heading = heading::RUN)]
    image_size: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl FeaturesArgs {
    /// The image files, those of the list behind the others.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = self.images.clone();
        if let Some(list) = &self.list {
            let text = fs::read_to_string(list).map_err(|e| Error::io(list, "read the list", e))?;
            files.extend(
                text.lines()
                    .filter(|line| !line.is_empty())
                    .map(PathBuf::from),
            );
        }
        match files.is_empty() {
            true => Err(Error::setting("images", "at least one file", "none")),
            false => Ok(files),
        }
    }
}

pub(super) fn run(args: &FeaturesArgs) -> Result<()> {
    let files = args.files()?;
    let compute = args.compute.choose()?;
    let tower = EvalTower::open(&args.tower, args.image_size, &compute)?;
    let mut features = tower.features(args.form)?;
    print_warnings(&tower.take_warnings());
    let mut array = Array::create(&args.out, files.len())?;
    let outcome = features
        .of_files(&files, |rows, shape| array.push(rows, shape))
        .and_then(|()| array.finish());
    print_warnings(&tower.take_warnings());
    if outcome.is_err() {
        // Nobody should find an array without its end.
        let _ = fs::remove_file(&args.out);
    }
    outcome
}

/// An array in numpy's form (NEP 1), written row by row.
struct Array<'a> {
    path: &'a Path,
    file: BufWriter<File>,
    rows: usize,
    has_head: bool,
}

impl Array<'_> {
    /// A new file for so many rows.
    fn create(path: &Path, rows: usize) -> Result<Array<'_>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|problem| match problem.kind() {
            ErrorKind::AlreadyExists => {
                Error::setting("--out", "a file that is not there yet", path.display())
            }
            _ => Error::io(path, "create the file", problem),
        })?;
        Ok(Array {
            path,
            file: BufWriter::new(file),
            rows,
            has_head: false,
        })
    }

    /// Appends rows of this shape.
    fn push(&mut self, numbers: &[f32], shape: &[usize]) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 * numbers.len());
        if !self.has_head {
            bytes.extend(head(self.rows, shape));
            self.has_head = true;
        }
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let written = self.file.write_all(&bytes);
        written.map_err(|e| Error::io(self.path, "write", e))
    }

    fn finish(&mut self) -> Result<()> {
        let written = self.file.flush();
        written.map_err(|e| Error::io(self.path, "write", e))
    }
}

/// What stands before the numbers of an array [rows, …]: its type and shape, filled up to whole 64 bytes.
fn head(rows: usize, shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!(", {size}")).collect();
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}{sizes}), }}");
    let before = 10;
    let all = (before + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(all - before - text.len() - 1));
    text.push('\n');
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend((text.len() as u16).to_le_bytes());
    head.extend(text.as_bytes());
    head
}
