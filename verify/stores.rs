//! Data in object stores and on web servers: read as local files are, sample by sample, whatever the network does; or one
//! sentence.

mod faults;
mod server;

use std::fs;
use std::path::Path;
use std::process::Command;

use keel::data::pairs::{Pair, PairLimits, PairSource, Pairs};
use rayon::prelude::*;
use tempfile::TempDir;

use crate::bad_input::{DRAWS_PAIRS, place};
use crate::command::{Answer, checkpoint, command, keel, tensors};
use crate::data_pairs::{folder, images};
use crate::data_webdataset::{END, file};
use crate::harness::goldens;
use server::{Fault, StoreServer};

/// A shard of samples, some of them with records of JSON, one without a caption, with members as large as `filling` between.
pub fn shard(number: usize, samples: usize, filling: usize) -> Vec<u8> {
    let kinds = images();
    let mut bytes = Vec::new();
    for index in 0..samples {
        let key = format!("{number:02}{index:03}");
        let (ending, image) = &kinds[index % kinds.len()];
        bytes.extend(file(&format!("{key}.{ending}"), image));
        bytes.extend(file(&format!("{key}.other"), &vec![index as u8; filling]));
        if index % 3 == 1 {
            let record = format!("{{\"question\": \"which?\", \"answer\": \"{key}\"}}");
            bytes.extend(file(&format!("{key}.json"), record.as_bytes()));
        } else {
            bytes.extend(file(
                &format!("{key}.txt"),
                format!("image {key}").as_bytes(),
            ));
        }
    }
    bytes.extend(file(&format!("{number:02}999.png"), &kinds[0].1));
    bytes.extend(END);
    bytes
}

/// Data of every form below a folder, and the same as objects below `bucket/`.
fn both(files: &[(&str, Vec<u8>)]) -> (TempDir, StoreServer) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (*name, &bytes[..]))
        .collect();
    let named: Vec<(String, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (format!("bucket/{name}"), *bytes))
        .collect();
    let objects: Vec<(&str, &[u8])> = named
        .iter()
        .map(|(name, bytes)| (&name[..], *bytes))
        .collect();
    (folder(&files), StoreServer::new(&objects))
}

fn shards() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("s-0.tar", shard(0, 40, 0)),
        ("s-1.tar", shard(1, 40, 3000)),
        ("s-2.tar", shard(2, 40, 70_000)),
    ]
}

fn open(data: &str) -> keel::error::Result<Pairs> {
    Pairs::open(data, PairLimits::default())
}

/// Every pair, read on several threads at once.
fn all(pairs: &Pairs) -> Vec<Pair> {
    let indices = (0..pairs.len()).into_par_iter();
    indices
        .map(|index| pairs.get(index).unwrap_or_else(|e| panic!("{e}")))
        .collect()
}

/// Holds an address to what a local file gives; names of the list or table are left out of keys.
#[track_caller]
fn same(remote: &str, local: &str) {
    let (of_remote, of_local) = (open(remote), open(local));
    let (of_remote, of_local) = (
        of_remote.unwrap_or_else(|e| panic!("{e}")),
        of_local.unwrap(),
    );
    let without = |pairs: Vec<Pair>, name: &str| -> Vec<Pair> {
        let short = |pair: Pair| Pair {
            key: pair.key.replace(name, ""),
            ..pair
        };
        pairs.into_iter().map(short).collect()
    };
    let (got, wanted) = (all(&of_remote), all(&of_local));
    assert_eq!(got.len(), wanted.len(), "{remote}");
    assert!(without(got, remote) == without(wanted, local), "{remote}");
    for index in 0..of_local.len() {
        let [got, wanted] = [&of_remote, &of_local].map(|pairs| pairs.words(index).unwrap());
        assert_eq!(got.caption, wanted.caption);
    }
    let summary = |pairs: &Pairs, name: &str| pairs.opening_skips().summary().replace(name, "");
    let start = |name: &str| name.rsplit_once('/').unwrap().0.to_owned();
    assert_eq!(
        summary(&of_remote, &start(remote)),
        summary(&of_local, &start(local))
    );
}

#[test]
fn data_in_a_store_are_the_same_samples_in_the_same_order_as_local_ones() {
    use std::io::Write;
    let mut files = shards();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&files[1].1).unwrap();
    files.push(("packed.tar.gz", packed.finish().unwrap()));
    for name in ["captions", "conversations", "messages", "texts"] {
        let name: &'static str = Box::leak(format!("{name}.parquet").into_boxed_str());
        files.push((
            name,
            fs::read(goldens().join("parquet").join(name)).unwrap(),
        ));
    }
    let kinds = images();
    files.push(("images/a b.png", kinds[0].1.clone()));
    files.push(("images/c.jpg", kinds[1].1.clone()));
    let lines = r#"{"image": "images/a b.png", "caption": "one"}
{"image": "images/c.jpg", "caption": "two"}
"#;
    files.push(("list.jsonl", lines.into()));
    files.push((
        "list.json",
        format!("[{}]", lines.trim().replace('\n', ",")).into(),
    ));
    files.push(("table.tsv", "image\tcaption\nimages/c.jpg\tthree\n".into()));
    let mixture = r#"{"one": {"root": ".", "annotation": "list.jsonl", "repeat_time": 2}}"#;
    files.push(("mixture.json", mixture.into()));
    let (local, server) = both(&files);
    let (local, remote) = (
        local.path().display().to_string(),
        format!("{}/bucket", server.url()),
    );
    for name in [
        "s-{0..2}.tar",
        "s-1.tar",
        "packed.tar.gz",
        "captions.parquet",
        "conversations.parquet",
        "messages.parquet",
        "texts.parquet",
        "list.jsonl",
        "list.json",
        "table.tsv",
        "mixture.json",
        "s-0.tar=1.5",
    ] {
        same(&format!("{remote}/{name}"), &format!("{local}/{name}"));
    }
    // What tells the server who asks is no part of a name, and a number in it no number of repeats.
    let signed = open(&format!("{remote}/s-0.tar?expires=3600")).unwrap();
    let digests = signed.digests().unwrap();
    assert_eq!(
        (signed.len(), &digests[0].name),
        (40, &format!("{remote}/s-0.tar"))
    );
    assert_eq!(
        signed.notes(),
        Vec::<String>::new(),
        "nothing was asked for twice"
    );
}

#[test]
fn a_sample_costs_one_request_and_a_walk_passes_over_what_is_large() {
    // Members of five megabytes, which no walk needs.
    let large = shard(7, 6, 5 << 20);
    let server = StoreServer::new(&[
        ("bucket/large.tar", &large),
        ("bucket/small.tar", &shard(0, 40, 0)),
    ]);
    let pairs = open(&format!("{}/bucket/small.tar", server.url())).unwrap();
    assert!(
        server.requests() <= 4,
        "{} requests to open",
        server.requests()
    );
    server.mend();
    pairs.get(3).unwrap();
    assert_eq!(server.requests(), 1);
    server.mend();
    assert_eq!(
        open(&format!("{}/bucket/large.tar", server.url()))
            .unwrap()
            .len(),
        6
    );
    assert!(
        server.requests() <= 20,
        "{} requests for 6 samples",
        server.requests()
    );
}

/// The program, in a folder, with a store behind `s3://`, `gs://` and `az://` and nothing kept elsewhere.
fn at_store(server: &StoreServer, folder: &Path, args: &[&str]) -> Command {
    let mut command = command(folder, args);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "GOOGLE_", "AZURE_"]
            .iter()
            .any(|start| name.starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
        .env("KEEL_CACHE", folder.join("cache"))
        .env("KEEL_STORE_TIMEOUT", "1")
        .env("AWS_ENDPOINT_URL", server.url())
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "who")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("GOOGLE_BASE_URL", server.url())
        .env("GOOGLE_ALLOW_HTTP", "true")
        .env("GOOGLE_SKIP_SIGNATURE", "true")
        .env("AZURE_STORAGE_USE_EMULATOR", "true")
        .env("AZURITE_BLOB_STORAGE_URL", server.url());
    command
}

fn answer(mut command: Command) -> Answer {
    Answer::of(command.output().expect("the program starts"))
}

#[test]
fn data_check_reads_every_store_and_keeps_the_index_of_its_shards() {
    let (local, server) = both(&shards());
    let path = local.path();
    let check =
        |data: &str| answer(at_store(&server, path, &["data", "check", data, "--json"])).fine();
    let wanted = check("s-{0..2}.tar").stdout;
    let shown = |data: &str, start: &str| check(data).stdout.replace(start, "");
    let first = shown("s3://bucket/s-{0..2}.tar", "s3://bucket/");
    assert_eq!(first, wanted);
    let signed = server
        .last_request()
        .iter()
        .any(|line| line.contains("AWS4-HMAC-SHA256 Credential=who/"));
    assert!(signed, "{:?}", server.last_request());
    let kept: Vec<_> = fs::read_dir(path.join("cache/shards"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(kept.len(), 3, "{kept:?}");
    // The walks are not made again; what is damaged in the folder of caches is not believed.
    server.mend();
    assert_eq!(shown("s3://bucket/s-{0..2}.tar", "s3://bucket/"), wanted);
    assert_eq!(
        server.requests(),
        3 + 120,
        "one for each shard and each sample"
    );
    let text = fs::read_to_string(&kept[0]).unwrap();
    fs::write(&kept[0], text.replacen("\"k\":\"0", "\"k\":\"9", 1)).unwrap();
    assert_eq!(shown("s3://bucket/s-{0..2}.tar", "s3://bucket/"), wanted);
    // An object of another content under the same name is walked over anew.
    server.put("bucket/s-1.tar", &shard(1, 39, 3000));
    assert!(
        check("s3://bucket/s-{0..2}.tar")
            .stdout
            .contains("\"samples\": 119")
    );
    server.put("bucket/s-1.tar", &shards()[1].1);
    for start in ["gs://bucket/", "az://bucket/"] {
        assert_eq!(shown(&format!("{start}s-{{0..2}}.tar"), start), wanted);
    }
}

#[test]
fn a_run_from_a_store_has_the_bits_of_a_local_one_also_when_it_is_cut_off_mid_epoch() {
    let (data, server) = both(&shards());
    let folder = place();
    let path = folder.path();
    fs::copy(data.path().join("s-0.tar"), path.join("s-0.tar")).unwrap();
    fs::copy(data.path().join("s-1.tar"), path.join("s-1.tar")).unwrap();
    let data_there = "s3://bucket/s-{0..1}.tar";
    let train = |data: &str, out: &str| {
        let args = [
            "train",
            "--recipe",
            "one.toml",
            "--no-evaluation",
            "--data",
            data,
            "--out",
            out,
            "--save-every",
            "1",
        ];
        let args = [
            &args[..],
            &["--threads", "1", "--max-steps", "4"],
            &DRAWS_PAIRS[..],
        ]
        .concat();
        answer(at_store(&server, path, &args))
    };
    train("s-{0..1}.tar", "local").fine();
    train(data_there, "remote").fine();
    let end = |run: &str| tensors(&checkpoint(&path.join(run), "1-warm-up"));
    assert!(end("local") == end("remote"), "other parameters");
    // The store goes away after twenty samples, and for good.
    server.fail(|number, _| (number >= 22).then_some(Fault::Status(403)));
    let cut = train(data_there, "cut").failed(&["s3://bucket/s-", "refuses to show it (403)"]);
    assert!(
        !path.join("cut/checkpoints/1-warm-up.safetensors").exists(),
        "{cut:#?}"
    );
    server.mend();
    let resume = |more: &[&str]| {
        let args = [
            "train",
            "--resume",
            "cut",
            "--no-evaluation",
            "--threads",
            "1",
            "--max-steps",
            "4",
            "--data",
            data_there,
        ];
        answer(at_store(&server, path, &[&args[..], more].concat()))
    };
    // Not with other objects than those that it began with.
    server.put("bucket/s-1.tar", &shard(1, 40, 3001));
    let named = "the data s3://bucket/s-0.tar were 80 samples, content ";
    resume(&[]).refused(&["--accept-changes", named]);
    server.put("bucket/s-1.tar", &shards()[1].1);
    // A store that fails now and then costs time and no bit, and is said once while it happens.
    server.fail(|number, _| (number % 7 == 5).then_some(Fault::Status(503)));
    let resumed = resume(&[]).fine();
    assert!(
        end("local") == end("cut"),
        "other parameters after a resume"
    );
    let said = resumed
        .stdout
        .matches("requests to stores were made again")
        .count();
    assert!((1..=3).contains(&said), "{resumed:#?}");
}

#[test]
fn addresses_that_are_none_and_commands_are_refused_by_name() {
    let refused = |data: &str, part: &str| {
        let text = open(data).expect_err("must be refused").to_string();
        assert!(text.contains(part) && !text.contains('\n'), "{text}");
    };
    refused(
        "hdfs://a/b.tar",
        "hdfs://a/b.tar: cannot open: addresses of hdfs are not read; give s3://, gs://, az://",
    );
    refused(
        "s3://bucket",
        "it names no object; give a bucket and the name of an object",
    );
    refused(
        "https://host",
        "it names no file; give a host and the path of a file",
    );
    refused(
        "https://me:secret@host/a.tar",
        "it holds a password, and addresses are kept with a run; give https://host/a.tar",
    );
    refused(
        "s3://bucket/a//b.tar",
        "its name cannot be that of an object",
    );
    refused(
        "pipe:aws s3 cp s3://bucket/a.tar -",
        "a command, and none is ever run",
    );
    refused(
        "pipe:curl x",
        "the address of the shards themselves, as in s3://bucket/shards-{000..009}.tar",
    );
    refused("http://127.0.0.1:1/a.zip2", "it cannot be reached");
    let sums = ["data", "sums", "s3://bucket/s-{0..1}.tar"];
    keel(Path::new("."), &sums).refused(&["shards on this machine", "found s3://bucket/s-0.tar"]);
}
