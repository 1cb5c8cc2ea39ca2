//! Answers of a run over HTTP, as clients of OpenAI's chat completions ask for them, and a page to ask with.
//!
//! One thread computes (`engine`); connections only wait for it. Nothing is fetched from an address that a request names, and
//! no file is read for one.
#![deny(unsafe_code)]

mod answer_text;
mod completion;
mod connections;
mod engine;
mod fault;
mod image;
mod looks;
mod pace;
mod reply;
mod request;
mod service;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use answer_text::{AnswerText, Growth};
use engine::AnswerEngine;
pub use fault::Fault;
use keel_base::error::{Error, Result};
use keel_engine::executor::SelectedDevice;
use keel_train::EvalRun;
use pace::Patience;
pub use request::ChatRequest;
use service::Service;

/// How a run is served.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// The name of the model in requests and replies.
    pub model: String,
    /// Answers at once.
    pub streams: usize,
    /// Requests that wait beside those; more are refused.
    pub queue: usize,
    /// Largest request, bytes.
    pub most_request: usize,
    /// Time for a client to send the head of a request, and its body; twice as long it may take to read the end of a reply.
    pub patience: Duration,
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    engine: AnswerEngine,
    run: Arc<EvalRun>,
    settings: ServeSettings,
    compute: SelectedDevice,
}

impl Server {
    /// Loads what answers, and begins to listen. `compute` is what `run` was opened with.
    ///
    /// # Errors
    /// [`Error::Io`] naming the address where it is taken or not this machine's; whatever loading reports.
    pub fn open(run: EvalRun, compute: SelectedDevice, settings: ServeSettings) -> Result<Server> {
        let run = Arc::new(run);
        let engine = AnswerEngine::new(run.clone(), settings.streams)?;
        let io = |problem| Error::io(settings.address.to_string(), "listen there", problem);
        let listener = TcpListener::bind(settings.address).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        Ok(Server {
            listener,
            address,
            engine,
            run,
            settings,
            compute,
        })
    }

    /// What the device had to say so far, such as that it computes slower than it could.
    pub fn take_warnings(&self) -> Vec<String> {
        self.run.take_warnings()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until TERM or INT, and then until what was asked before is answered. A second signal ends the process at once.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no threads or no handlers of signals.
    pub fn serve(self) -> Result<()> {
        let Server {
            listener,
            engine,
            run,
            settings,
            compute,
            ..
        } = self;
        let runtime = Runtime::new().map_err(|e| Error::io("threads", "start", e))?;
        let (jobs, waiting) = sync_channel(settings.queue);
        let computing = std::thread::Builder::new()
            .name("answers".to_owned())
            .spawn(move || engine.serve(&waiting))
            .map_err(|e| Error::io("threads", "start", e))?;
        let service = Arc::new(Service::new(
            run,
            settings.model,
            (jobs, settings.queue),
            (settings.most_request, Patience(settings.patience)),
            compute,
        ));
        runtime.block_on(async {
            let io = |problem| Error::io("connections", "take in", problem);
            let listener = tokio::net::TcpListener::from_std(listener).map_err(io)?;
            let (ending, ends) = watch::channel(false);
            heed_signals(ending).map_err(|e| Error::io("signals", "install a handler", e))?;
            connections::serve(listener, service, ends).await;
            Ok(())
        })?;
        // Looks of earlier stages that nobody reads any more are not waited for.
        runtime.shutdown_background();
        // Nobody can ask any more: the thread has nothing left to do.
        let _ = computing.join();
        Ok(())
    }
}

/// The first signal begins the end, the second one is the end.
fn heed_signals(ending: watch::Sender<bool>) -> std::io::Result<()> {
    for (kind, code) in [
        (SignalKind::terminate(), 143),
        (SignalKind::interrupt(), 130),
    ] {
        let mut heard = signal(kind)?;
        let ending = ending.clone();
        tokio::spawn(async move {
            while heard.recv().await.is_some() {
                if ending.send_replace(true) {
                    std::process::exit(code);
                }
            }
        });
    }
    Ok(())
}
