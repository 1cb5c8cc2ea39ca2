//! Reports: whole pages that load nothing, from runs in any state; and event files that hold what metrics.jsonl holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::keel;

/// Tags without an end.
const VOID: [&str; 5] = ["meta", "link", "img", "br", "!doctype"];

/// Fails unless every tag is closed in order, nothing is loaded, nothing runs, and everything drawn has a name.
fn check_page(html: &str) {
    assert!(html.starts_with("<!doctype html>") && html.contains("<html lang=\"en\">"));
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at + 1..at + 1 + rest[at + 1..].find('>').expect("a tag ends")];
        // A style sheet holds no tags.
        let name = tag
            .split(|c: char| c.is_whitespace() || c == '/')
            .find(|n| !n.is_empty());
        let name = name.expect("a tag has a name");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed out of order near {tag}");
            rest = &rest[at + 1 + tag.len()..];
            continue;
        }
        if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
        assert!(name != "script" && name != "iframe", "{tag}");
        if name == "img" {
            assert!(
                tag.contains(" alt=\"") && tag.contains("src=\"data:image/"),
                "{}",
                short(tag)
            );
        }
        if name == "svg" {
            assert!(tag.contains("role=\"img\" aria-label=\""), "{}", short(tag));
        }
        for address in ["src=\"", "href=\""] {
            if let Some((_, address)) = tag.split_once(address) {
                let local = address.starts_with('#') || address.starts_with("data:");
                assert!(local, "loads {}", short(address));
            }
        }
        rest = &rest[at + 1 + tag.len()..];
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    for number in ["NaN", "inf,", "\"inf", ">inf<"] {
        assert!(!html.contains(number), "the page holds {number}");
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn tiny_run(folder: &Path, out: &str, further: &[&str]) -> PathBuf {
    let mut args = vec!["train", "--device", "cpu", "--recipe", "tiny", "--out", out];
    args.extend(further);
    keel(folder, &args).fine();
    folder.join(out)
}

/// The page of a run with every figure, and a headless browser's word on it where there is one.
#[test]
fn a_run_leaves_a_whole_page_that_a_browser_draws() {
    let folder = tempfile::tempdir().unwrap();
    let run = tiny_run(
        folder.path(),
        "run",
        &["--max-steps", "3", "--evaluation-images", "12"],
    );
    let measured = ["eval", "run", "--metrics", "drift,layers"];
    keel(folder.path(), &measured).fine();
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    check_page(&html);
    for section in [
        "summary",
        "training",
        "worth",
        "examples",
        "attention",
        "tokens",
        "memory",
        "warnings",
        "again",
    ] {
        assert!(
            html.contains(&format!("<section id=\"{section}\"")),
            "{section}"
        );
    }
    assert!(!html.contains("has not come to its end"));
    for word in [
        "Losses",
        "Zero-shot classes",
        "Surest finds",
        "Worst misses",
        "head 1",
        "visual tokens",
        "lower bound",
    ] {
        assert!(html.contains(word), "{word}");
    }
    keel(folder.path(), &["report", "run"]).fine();
    let again = fs::read_to_string(run.join("report.html")).unwrap();
    check_page(&again);
    assert!(
        again.contains("Where in the tower it pays") && again.contains("after target"),
        "what every block is worth is missing"
    );
    assert!(
        again.contains("Measured later") && again.contains("warm-start-vision"),
        "what was measured later is missing"
    );

    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let Some(browser) = browsers.into_iter().find(|name| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|answer| answer.status.success())
    }) else {
        return;
    };
    for (name, size) in [("phone", "390,4000"), ("desktop", "1280,4000")] {
        let image = folder.path().join(format!("{name}.png"));
        let answer = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
            ])
            .arg(format!(
                "--user-data-dir={}",
                folder.path().join("browser").display()
            ))
            .arg(format!("--window-size={size}"))
            .arg(format!("--screenshot={}", image.display()))
            .arg(format!("file://{}", run.join("report.html").display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&answer.stderr);
        assert!(!said.contains("CONSOLE"), "{said}");
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&image).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let bytes = info.color_type.samples();
        let colours: std::collections::HashSet<&[u8]> = pixels.chunks_exact(bytes).collect();
        assert!(colours.len() > 100, "{name}: an empty page");
    }
}

#[test]
fn a_run_that_was_cut_off_anywhere_still_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let run = tiny_run(
        folder.path(),
        "run",
        &["--max-steps", "2", "--evaluation-images", "4"],
    );
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    for share in [0, 1, 3, 5] {
        fs::write(run.join("metrics.jsonl"), &rows[..rows.len() * share / 10]).unwrap();
        keel(folder.path(), &["report", "run"]).fine();
        let html = fs::read_to_string(run.join("report.html")).unwrap();
        check_page(&html);
        assert!(html.contains("has not come to its end"), "{share}");
    }
    for entry in fs::read_dir(run.join("qualitative")).unwrap() {
        fs::write(entry.unwrap().path(), "{\"stage\": 3").unwrap();
    }
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    keel(folder.path(), &["report", "run"]).fine();
    check_page(&fs::read_to_string(run.join("report.html")).unwrap());

    keel(folder.path(), &["report", "."]).refused(&["the folder of a run", "a folder without one"]);
    keel(folder.path(), &["report", "run", "--out", "."]).refused(&["--out", "a folder"]);
}

#[test]
fn text_of_samples_and_settings_cannot_break_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--max-steps", "1", "--no-evaluation"];
    let run = tiny_run(folder.path(), "a <b> & 'c'", &args);
    let mut rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let text = "samples: <script>alert('x')</script><img src=http://x>&\"quoted\"";
    rows += &format!("{}\n", serde_json::json!({"kind": "warning", "text": text}));
    fs::write(run.join("metrics.jsonl"), rows).unwrap();
    keel(folder.path(), &["report", "a <b> & 'c'"]).fine();
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    check_page(&html);
    assert!(html.contains("&lt;img src=http://x&gt;&amp;&quot;quoted&quot;"));
    assert!(html.contains("<h1>Keel run a &lt;b&gt; &amp; &#39;c&#39;</h1>"));
}

#[test]
fn runs_are_put_side_by_side_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let few = ["--max-steps", "2", "--no-evaluation"];
    tiny_run(folder.path(), "one", &few);
    let other = [&few[..], &["--set", "stage.warm-up.learning_rate=0.25"]].concat();
    tiny_run(folder.path(), "other", &other);
    keel(folder.path(), &["report", "one", "other"]).fine();
    let html = fs::read_to_string(folder.path().join("comparison.html")).unwrap();
    check_page(&html);
    assert!(
        html.contains("<th scope=\"row\">stage.warm-up.learning_rate</th>"),
        "{html}"
    );
    assert!(html.contains("<td>0.25</td>") && !html.contains(">stage.target.batch_size<"));
    assert!(html.contains("<h3>warm-up, next token</h3>"));
    keel(folder.path(), &["report", "one", "one"]).fine();
    let html = fs::read_to_string(folder.path().join("comparison.html")).unwrap();
    assert!(html.contains("<p>Nowhere.</p>"));
}

/// Length, checksum, event, checksum; checked bit by bit against the polynomial.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    fn checksum(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            }
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut all) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), checksum(&bytes[at..at + 8]));
        let event = &bytes[at + 12..at + 12 + length];
        assert_eq!(word(at + 12 + length), checksum(event));
        all.push(event);
        at += 16 + length;
    }
    all
}

#[test]
fn event_files_hold_the_numbers_of_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let run = tiny_run(
        folder.path(),
        "run",
        &["--max-steps", "2", "--no-evaluation"],
    );
    let files: Vec<PathBuf> = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("tfevents"))
        .collect();
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    let bytes = fs::read(file).unwrap();
    let records = records(&bytes);
    assert!(records[0].ends_with(b"brain.Event:2"));
    let rows: Vec<serde_json::Value> = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &serde_json::Value| row["kind"] == "step")
        .collect();
    assert_eq!(records.len(), 1 + rows.len());
    for (event, row) in records[1..].iter().zip(&rows) {
        let tag = format!("{}/loss", row["stage"].as_str().unwrap());
        let at = event
            .windows(tag.len())
            .position(|w| w == tag.as_bytes())
            .unwrap();
        // The tag, then the field of a float.
        let value = &event[at + tag.len()..][..5];
        assert_eq!(value[0], 0x15);
        let value = f32::from_le_bytes(value[1..].try_into().unwrap());
        assert_eq!(value, row["loss"].as_f64().unwrap() as f32);
    }
}
