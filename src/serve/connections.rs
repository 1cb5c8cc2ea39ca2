//! Connections: how many there are, how long they may take, and how they end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::fault::Fault;
use super::pace::{Pace, Phase};
use super::reply;
use super::service::Service;

/// Connections that are served at once.
const MOST_CONNECTIONS: usize = 512;
/// Connections beyond those that are told so; more are closed without a word.
const MOST_REFUSED: usize = 128;
/// Time to tell them.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// The pause after the system refused a connection, as it does when a process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `ends` says so, and then until each has been answered.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    mut ends: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSED));
    let is_ending = ends.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ends.wait_for(|ends| *ends) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Small events are sent as they come.
        let _ = stream.set_nodelay(true);
        match room.clone().try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(converse(stream, service.clone(), is_ending.clone(), permit));
            }
            Err(_) => {
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    tokio::spawn(refuse(stream, permit));
                }
            }
        }
    }
    drop(listener);
    // Every connection holds a permit as long as it lasts.
    let _ = room.acquire_many(MOST_CONNECTIONS as u32).await;
}

/// One connection, request after request.
async fn converse(
    stream: TcpStream,
    service: Arc<Service>,
    mut ends: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    let (pace, mut phase) = Pace::new();
    let patience = service.patience;
    let answer = service_fn(|request| {
        let (service, pace) = (service.clone(), pace.clone());
        async move {
            pace.set(Phase::Working);
            let reply = service.reply(request, pace.clone()).await;
            // A stream says itself when it is whole.
            if !reply::is_stream(&reply) {
                pace.set(Phase::Sending);
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new());
    builder.header_read_timeout(patience.0);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let mut is_ending = false;
    loop {
        let limit = phase.borrow_and_update().limit(patience);
        let expires = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What became of it is the client's business: it has gone, or has been answered.
            _ = connection.as_mut() => return,
            _ = expires => return,
            _ = phase.changed() => {}
            _ = ends.wait_for(|ends| *ends), if !is_ending => {
                is_ending = true;
                // The library would wait for a first request that may never come.
                if *phase.borrow() == Phase::Waiting {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Tells a connection that there is no room for it.
async fn refuse(stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let answer = service_fn(|_| async {
        let fault = Fault::connections(MOST_CONNECTIONS);
        Ok::<_, Infallible>(reply::fault(&fault, None))
    });
    let mut builder = Builder::new();
    builder.keep_alive(false);
    let connection = builder.serve_connection(TokioIo::new(stream), answer);
    let _ = tokio::time::timeout(REFUSAL_LIMIT, connection).await;
}
