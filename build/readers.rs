//! The census of each image's instructions, by NVIDIA's disassembler where there is one. `cargo tool nvcc` installs it;
//! without it the images are the same and only the census is left out.

use super::cache::{self, Cache};
use super::{Image, sass};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Adds to every image the census of its instructions.
pub fn count(root: &Path, nvcc: &Path, cache: &Cache, images: &mut [Image]) {
    let Some((reader, version)) = find(root, nvcc) else {
        println!(
            "cargo:warning=no cuobjdump was found, so the kernel report cannot count instructions; `cargo tool nvcc` \
             installs one under target/"
        );
        return;
    };
    let counted: Vec<PathBuf> = images
        .iter()
        .map(|image| {
            let name = image.fatbin.file_stem().expect("a cached file has a name");
            // Of the image, the disassembler and the counting: a census is as old as the youngest of them.
            let settings = [
                name.to_string_lossy().into_owned(),
                version.clone(),
                include_str!("sass.rs").to_owned(),
            ];
            cache.path(&cache::key_of_settings(&settings), "census")
        })
        .collect();
    let missing: Vec<usize> = (0..images.len())
        .filter(|i| !counted[*i].exists())
        .collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(missing.len()) {
            scope.spawn(|| {
                while let Some(&index) =
                    missing.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    match disassemble(&reader, &images[index].fatbin) {
                        Ok(text) => {
                            let census = sass::write(&sass::count(&text));
                            cache.store_text(&census, &counted[index]);
                        }
                        Err(problem) => println!(
                            "cargo:warning={} cannot read {}: {problem}",
                            reader.display(),
                            images[index].fatbin.display()
                        ),
                    }
                }
            });
        }
    });
    for (image, path) in images.iter_mut().zip(counted) {
        image.census = path.exists().then_some(path);
    }
}

/// A cuobjdump that starts, with nvdisasm beside it: the pinned one, nvcc's neighbour, or one on the path.
fn find(root: &Path, nvcc: &Path) -> Option<(PathBuf, String)> {
    let mut folders = vec![root.join("target/nvcc-readers/nvidia/cu13/bin")];
    folders.extend(nvcc.parent().map(Path::to_owned));
    if let Some(path) = std::env::var_os("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    folders.into_iter().find_map(|folder| {
        let reader = folder.join("cuobjdump");
        if !folder.join("nvdisasm").is_file() {
            return None;
        }
        let output = Command::new(&reader).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some((reader, version))
    })
}

fn disassemble(reader: &Path, image: &Path) -> Result<String, String> {
    let output = Command::new(reader)
        .arg("-sass")
        .arg(image)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr)
            .lines()
            .collect::<Vec<_>>()
            .join(" "))
    }
}
