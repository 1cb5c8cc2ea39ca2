//! A server process of its own for a test.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{command, keel, shared_folder, tiny_recipe};

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one for the run in `folder`, with further options.
    pub fn start(folder: &Path, more: &[&str]) -> Server {
        let args = ["serve", "run", "--device", "cpu", "--port", "0"];
        let mut process = command(folder, &[&args[..], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut said = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("model ") {
            line.clear();
            if said.read_line(&mut line).unwrap() == 0 {
                let mut problem = String::new();
                let errors = process.stderr.as_mut().unwrap();
                errors.read_to_string(&mut problem).unwrap();
                panic!("the server did not start: {problem}");
            }
        }
        let (_, address) = line.split_once("http://").expect("an address");
        let (address, _) = address.split_once('/').unwrap();
        Server {
            address: address.parse().expect("an address"),
            process,
            said,
        }
    }

    /// Sends TERM.
    pub fn end(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }

    /// Waits until it has ended; what it said on the error stream must be nothing.
    pub fn wait(&mut self) -> ExitStatus {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        let errors = self.process.stderr.as_mut().unwrap();
        errors.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        self.process.wait().unwrap()
    }

    /// Bytes of memory that it holds.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("a process's own numbers");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a size") * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folder of a trained `run` of one stage, with rows of so many tokens.
fn trained(tokens: usize) -> PathBuf {
    let folder = shared_folder();
    let recipe = tiny_recipe(&["fine-grained", "world-knowledge"]);
    fs::write(folder.join("one.toml"), recipe).unwrap();
    let set = format!("stage.world-knowledge.max_tokens={tokens}");
    let args = "train --device cpu --recipe one.toml --max-steps 1 --no-evaluation --out run --set";
    let args: Vec<&str> = args.split(' ').chain([&*set]).collect();
    keel(&folder, &args).fine();
    folder
}

/// A run whose answers are short.
pub fn short_run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| trained(80))
}

/// A run whose answers, drawn at a high temperature, take a while.
pub fn long_run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| trained(1024))
}
