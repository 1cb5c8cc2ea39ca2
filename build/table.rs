//! Writes the tables that the engine includes: every kernel as a constant of its own, so that a name that no source has
//! does not compile (src/engine/launch.rs), and the sources and images (src/engine/executor/kernel_table.rs).

use super::source::{Constant, Kernel, Parameter, Source};
use super::{Image, stem};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// What the storage types of a kernel's name are called in Rust.
const DTYPES: [(&str, &str); 3] = [("f32", "F32"), ("bf16", "Bf16"), ("i32", "I32")];

/// The kernels, those of one work for several storage types as families, and the constants that kernels and engine share.
pub fn kernels(sources: &[Source]) -> String {
    let kernels: Vec<&Kernel> = sources.iter().flat_map(|source| &source.kernels).collect();
    let mut text = String::new();
    push(&mut text, "/// Every kernel of `cuda/`.");
    push(&mut text, "pub static KERNELS: &[KernelEntry] = &[");
    for kernel in &kernels {
        let parameters: Vec<String> = kernel.parameters.iter().map(written).collect();
        push(
            &mut text,
            &format!(
                "    KernelEntry {{ name: {:?}, stem: {:?}, parameters: &[{}], cluster: {} }},",
                kernel.name,
                kernel.stem,
                parameters.join(", "),
                kernel.cluster
            ),
        );
    }
    push(&mut text, "];\n");
    for (index, kernel) in kernels.iter().enumerate() {
        let Kernel { name, stem, .. } = kernel;
        push(&mut text, &format!("/// `{name}` of `cuda/{stem}.cu`."));
        let constant = name.to_uppercase();
        push(
            &mut text,
            &format!("pub const {constant}: &KernelEntry = &KERNELS[{index}];"),
        );
    }
    families(&mut text, &kernels);
    constants(&mut text, sources);
    text
}

/// The files of cuda/ and what nvcc made of them.
pub fn images(sources: &[PathBuf], images: &[Image]) -> String {
    let mut text = String::from(
        "/// The files of `cuda/`: stem and text.\npub static SOURCES: &[(&str, &str)] = &[\n",
    );
    for source in sources {
        push(
            &mut text,
            &format!("    ({:?}, include_str!({source:?})),", stem(source)),
        );
    }
    text.push_str(
        "];\n\n/// What nvcc built; empty without nvcc.\npub static IMAGES: &[KernelImage] = &[\n",
    );
    for image in images {
        let census = match &image.census {
            Some(path) => format!("include_str!({path:?})"),
            None => "\"\"".to_owned(),
        };
        push(
            &mut text,
            &format!(
                "    KernelImage {{ stem: {:?}, toolkit: {}, fatbin: include_bytes!({:?}), ptxas: include_str!({:?}), census: {census} }},",
                image.stem, image.toolkit, image.fatbin, image.ptxas
            ),
        );
    }
    text.push_str("];\n");
    text
}

fn push(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

fn written(parameter: &Parameter) -> String {
    match parameter {
        Parameter::Pointer(element, is_const) => {
            let element = match element {
                Some(element) => format!("Some(Element::{element})"),
                None => "None".to_owned(),
            };
            format!("Parameter::Pointer {{ element: {element}, is_const: {is_const} }}")
        }
        Parameter::Number(kind, bytes) => format!("Parameter::{kind}({bytes})"),
        Parameter::TensorMap => "Parameter::TensorMap".to_owned(),
    }
}

/// Kernels whose names differ in the storage type alone, and those that differ in `_small`, in `_narrow` to `_wide`, or in
/// `_d<number>` besides.
fn families(text: &mut String, kernels: &[&Kernel]) {
    let mut members: BTreeMap<&str, Vec<(&str, &Kernel)>> = BTreeMap::new();
    for kernel in kernels {
        if let Some((base, dtype)) = kernel.name.rsplit_once('_')
            && let Some((_, variant)) = DTYPES.iter().find(|(name, _)| *name == dtype)
        {
            members.entry(base).or_default().push((variant, kernel));
        }
    }
    // A kernel of one type alone is named by its constant; a family of one would only be a second name.
    members.retain(|_, list| list.len() > 1);
    let mut sizes: BTreeMap<&str, BTreeMap<u32, &str>> = BTreeMap::new();
    for (base, list) in &members {
        push(
            text,
            &format!(
                "\n/// `{base}_*` of `cuda/{}.cu`, for each of its storage types.",
                list[0].1.stem
            ),
        );
        let list: Vec<String> = list
            .iter()
            .map(|(variant, kernel)| format!("(DType::{variant}, {})", kernel.name.to_uppercase()))
            .collect();
        push(
            text,
            &format!(
                "pub const {}: Family = Family {{ name: {base:?}, members: &[{}] }};",
                base.to_uppercase(),
                list.join(", ")
            ),
        );
        if let Some((work, size)) = base.rsplit_once("_d")
            && let Ok(size) = size.parse()
        {
            sizes.entry(work).or_default().insert(size, base);
        }
    }
    for base in members.keys() {
        let has = |end: &str| members.contains_key(format!("{base}{end}").as_str());
        let name = base.to_uppercase();
        if has("_small") {
            push(
                text,
                &format!("\n/// `{base}*`, by the size of their tiles."),
            );
            push(
                text,
                &format!(
                    "pub const {name}_SIZES: Sizes = Sizes {{ large: {name}, small: {name}_SMALL }};"
                ),
            );
        }
        if has("_narrow") && has("_wide") {
            push(
                text,
                &format!("\n/// `{base}*`, by the width of their rows."),
            );
            push(
                text,
                &format!(
                    "pub const {name}_WIDTHS: Widths = Widths {{ narrow: {name}_NARROW, middle: {name}_MIDDLE, usual: {name}, broad: {name}_BROAD, wide: {name}_WIDE }};"
                ),
            );
        }
    }
    for (work, list) in &sizes {
        push(
            text,
            &format!("\n/// `{work}_d*`, by the size they are built for, the smallest first."),
        );
        let list: Vec<String> = list
            .iter()
            .map(|(size, base)| format!("({size}, {})", base.to_uppercase()))
            .collect();
        push(
            text,
            &format!(
                "pub const {}: &[(usize, Family)] = &[{}];",
                work.to_uppercase(),
                list.join(", ")
            ),
        );
    }
}

/// A module of constants for each file that has some.
fn constants(text: &mut String, sources: &[Source]) {
    let mut files: BTreeMap<String, BTreeMap<String, &Constant>> = BTreeMap::new();
    for constant in sources.iter().flat_map(|source| &source.constants) {
        // `attention/forward.cuh` becomes `attention_forward`.
        let module = constant.file.with_extension("");
        let module = module.to_string_lossy().replace(['/', '\\'], "_");
        let before = files
            .entry(module)
            .or_default()
            .insert(rust_name(&constant.name), constant);
        // Files that include one header all see its constants.
        assert!(
            before.is_none_or(|before| before == constant),
            "two constants of cuda/ are called {} in {}; give one another name",
            constant.name,
            constant.file.display()
        );
    }
    push(
        text,
        "\n/// The constants that kernels and engine share, by the file that states them.\npub mod constants {",
    );
    for (module, list) in files {
        let first = list.values().next().expect("a module has a constant");
        let file = first.file.display().to_string();
        push(
            text,
            &format!("    /// Of `cuda/{file}`.\n    pub mod {module} {{"),
        );
        for (
            name,
            Constant {
                name: written,
                value,
                file,
            },
        ) in list
        {
            push(
                text,
                &format!(
                    "        /// `{written}` of `cuda/{}`.\n        pub const {name}: usize = {value};",
                    file.display()
                ),
            );
        }
        push(text, "    }");
    }
    push(text, "}");
}

/// `kRopeRows` as `ROPE_ROWS`.
fn rust_name(name: &str) -> String {
    let name = name.strip_prefix('k').unwrap_or(name);
    let mut out = String::new();
    for (index, c) in name.chars().enumerate() {
        if c.is_uppercase() && index > 0 {
            out.push('_');
        }
        out.extend(c.to_uppercase());
    }
    out
}
