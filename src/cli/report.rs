//! `keel report`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{heading, print_line};
use keel_base::error::{Error, Result};
use keel_report::{RunRecord, comparison_page, run_page};
use keel_train::write_durably;

/// Options of `keel report`.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The run's folder; several are compared side by side.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The file to write [default: report.html in the run's folder; comparison.html here for several runs].
    #[arg(long, value_name = "FILE", help_heading = heading::RUN)]
    out: Option<PathBuf>,
}

/// A run's page in its folder.
const REPORT: &str = "report.html";

/// Writes the page of the run in `run` to its folder; returns the path.
///
/// # Errors
/// As [`RunRecord::open`]; [`Error::Io`] when the file cannot be written.
pub(super) fn write_report(run: &Path) -> Result<PathBuf> {
    let page = run_page(&RunRecord::open(run)?);
    let path = run.join(REPORT);
    write_durably(&path, page.as_bytes())?;
    Ok(path)
}

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    if let Some(out) = &args.out
        && out.is_dir()
    {
        return Err(Error::setting(
            format!("--out {}", out.display()),
            "a file to write",
            "a folder",
        ));
    }
    let (page, path) = match &args.runs[..] {
        [run] => (run_page(&RunRecord::open(run)?), run.join(REPORT)),
        runs => {
            let records = runs.iter().map(|run| RunRecord::open(run));
            let records = records.collect::<Result<Vec<_>>>()?;
            (comparison_page(&records), "comparison.html".into())
        }
    };
    let path = args.out.clone().unwrap_or(path);
    write_durably(&path, page.as_bytes())?;
    print_line(format!("{}: open it in a browser", path.display()))
}
