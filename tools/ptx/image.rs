//! The PTX of the images that were built into this program, which is what a newer chip's driver would compile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keel_engine::executor::kernel_table::{BUILD_FOLDER, IMAGES, KERNELS};

use super::code::Code;
use super::source::Module;

/// The text of each image by the stem of its file. The disassembler writes it once; it is kept under the target folder by
/// what the image holds.
///
/// # Errors
/// A sentence that says what is missing: images, the disassembler, or what it refused.
pub fn texts() -> Result<&'static BTreeMap<&'static str, String>, String> {
    static TEXTS: OnceLock<Result<BTreeMap<&'static str, String>, String>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        if IMAGES.is_empty() {
            return Err(
                "this program was built without nvcc; run cargo tool nvcc and build again"
                    .to_owned(),
            );
        }
        let target = target_folder();
        let text = |image: &keel_engine::executor::kernel_table::KernelImage| {
            text(target, image.fatbin).map(|text| (image.stem, text))
        };
        IMAGES.iter().map(text).collect()
    });
    texts.as_ref().map_err(Clone::clone)
}

/// The text of `cuda/simt/zoo/wrappers.cu`, in which each wrapper of `cuda/ptx` has a kernel of its own, or of
/// `wrappers_sm90.cu` beside it.
///
/// # Errors
/// As [`texts`].
pub fn wrappers_text(stem: &str) -> Result<String, String> {
    texts()?;
    let path = Path::new(BUILD_FOLDER).join(format!("{stem}.fatbin"));
    let said = |problem| format!("cannot read {}: {problem}", path.display());
    let fatbin = std::fs::read(&path).map_err(said)?;
    text(target_folder(), &fatbin)
}

/// Where cargo builds.
fn target_folder() -> &'static Path {
    let target = Path::new(BUILD_FOLDER).ancestors().nth(4);
    target.expect("cargo builds under the target folder")
}

/// The PTX of one image.
fn text(target: &Path, fatbin: &[u8]) -> Result<String, String> {
    let name = blake3::hash(fatbin).to_hex();
    let kept = target
        .join("keel-cuda")
        .join(format!("{}.ptx", &name[..32]));
    if let Ok(text) = std::fs::read_to_string(&kept) {
        return Ok(text);
    }
    let reader = reader(target)?;
    let unique = format!("{}.{}", &name[..32], std::process::id());
    let image = kept.with_file_name(format!("{unique}.image"));
    let said = |problem: std::io::Error| format!("the PTX of an image cannot be kept: {problem}");
    std::fs::write(&image, fatbin).map_err(said)?;
    let output = Command::new(&reader).arg("-ptx").arg(&image).output();
    std::fs::remove_file(&image).ok();
    let output =
        output.map_err(|problem| format!("cannot start {}: {problem}", reader.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || !text.contains(".entry ") {
        return Err(format!("{} finds no PTX in an image", reader.display()));
    }
    // Renamed into place: another process must see all of it or nothing.
    let partial = kept.with_file_name(format!("{unique}.part"));
    std::fs::write(&partial, &text)
        .and_then(|()| std::fs::rename(&partial, &kept))
        .map_err(said)?;
    Ok(text)
}

/// NVIDIA's disassembler: the pinned one, or one on the path.
fn reader(target: &Path) -> Result<PathBuf, String> {
    let pinned = target.join("nvcc-readers/nvidia/cu13/bin");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(pinned)
        .chain(std::env::split_paths(&paths))
        .map(|folder| folder.join("cuobjdump"))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            "no cuobjdump was found; cargo tool nvcc installs one under target/".to_owned()
        })
}

/// The decoded kernels of this program's images, each decoded when it is first wanted.
#[derive(Default)]
pub struct Kernels {
    changed: Option<Module>,
    modules: Mutex<BTreeMap<&'static str, Arc<Module>>>,
    codes: Mutex<BTreeMap<&'static str, Arc<Code>>>,
}

impl Kernels {
    /// The kernels of this program, decoded once for all who want them.
    pub fn shared() -> Arc<Kernels> {
        static KERNELS: OnceLock<Arc<Kernels>> = OnceLock::new();
        KERNELS.get_or_init(Arc::default).clone()
    }

    /// The kernels of `text`, and those of this program that it does not have.
    ///
    /// # Errors
    /// As [`Module::parse`].
    pub fn changed(text: &str) -> Result<Kernels, String> {
        Ok(Kernels {
            changed: Some(Module::parse(text)?),
            ..Kernels::default()
        })
    }

    /// A kernel of `cuda/`.
    ///
    /// # Errors
    /// A sentence that says what is missing, or the form that the machine does not execute.
    pub fn code(&self, name: &str) -> Result<Arc<Code>, String> {
        let entry = KERNELS.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| format!("there is no kernel {name}"))?;
        if let Some(changed) = &self.changed {
            return match changed.entries.iter().any(|entry| entry.name == name) {
                true => Code::decode(changed, name).map(Arc::new),
                false => Kernels::shared().code(name),
            };
        }
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = codes.get(entry.name) {
            return Ok(code.clone());
        }
        let module = self.module(entry.stem)?;
        let code = Arc::new(Code::decode(&module, name)?);
        codes.insert(entry.name, code.clone());
        Ok(code)
    }

    fn module(&self, stem: &'static str) -> Result<Arc<Module>, String> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(stem) {
            return Ok(module.clone());
        }
        let text = texts()?.get(stem);
        let text = text.ok_or_else(|| format!("there is no image of {stem}.cu"))?;
        let module = Arc::new(Module::parse(text)?);
        modules.insert(stem, module.clone());
        Ok(module)
    }
}
