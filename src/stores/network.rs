//! Requests to stores, by the crate `object_store`, with the settings of the environment that it documents.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientConfigKey, ClientOptions, GetOptions, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use crate::address::{Address, Scheme};
use crate::client::{Client, Piece};
use crate::failure::{Failure, Result};

/// The variable that says how many seconds a request may take.
const TIMEOUT: &str = "KEEL_STORE_TIMEOUT";

/// Seconds that a request may take where nothing else is said: 8 MiB at a megabit a second.
const DEFAULT_SECONDS: u64 = 60;

/// Longest part of what a server said that a message shows.
const MOST_SAID: usize = 120;

type Store = Arc<dyn ObjectStore>;

/// An object of a store.
struct Remote {
    store: Store,
    path: Path,
    address: Address,
    limit: Duration,
}

/// The client of an address. Objects of one bucket share connections.
pub(crate) fn connect(address: &Address) -> Result<Arc<dyn Client>> {
    static STORES: OnceLock<Mutex<HashMap<String, Store>>> = OnceLock::new();
    let limit = limit()?;
    // What waits for the network is made before the first store, so that its absence is one sentence.
    runtime()?;
    let bad_key = |problem: object_store::path::Error| {
        let problem = format!("its name cannot be that of an object ({problem})");
        Failure::address(problem, "check the address")
    };
    let path = match address.scheme {
        Scheme::Http => Path::from_url_path(&address.key).map_err(bad_key)?,
        _ => Path::parse(&address.key).map_err(bad_key)?,
    };
    let known = STORES.get_or_init(Mutex::default);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("{:?} {}", address.scheme, address.store);
    let store = match known.get(&name) {
        Some(store) => store.clone(),
        None => {
            let store = build(address, limit).map_err(|problem| {
                let problem = format!("the store cannot be set up ({})", deepest(&problem));
                Failure::address(
                    problem,
                    format!("it is told by {}", address.scheme.settings()),
                )
            })?;
            known.insert(name, store.clone());
            store
        }
    };
    Ok(Arc::new(Remote {
        store,
        path,
        address: address.clone(),
        limit,
    }))
}

/// The time limit of a request.
fn limit() -> Result<Duration> {
    let Some(text) = std::env::var_os(TIMEOUT) else {
        return Ok(Duration::from_secs(DEFAULT_SECONDS));
    };
    let seconds = text.to_str().and_then(|text| text.parse::<u64>().ok());
    match seconds {
        Some(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(Failure::address(
            format!("{TIMEOUT} is {}", text.display()),
            "set it to a number of seconds from 1 to 3600",
        )),
    }
}

/// The threads that wait for the network: two, however many requests there are.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    // The one that TLS is to use; whoever else in this process chose one before us is left to it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("stores")
        .enable_all()
        .build()
        .map_err(|problem| {
            let remedy = "allow the process more threads";
            Failure::lasting(problem.kind(), problem.to_string(), remedy)
        })?;
    Ok(RUNTIME.get_or_init(|| made))
}

/// Requests are made again here, where it is counted, and not in the crate.
fn once() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// The client of a bucket, a container or a web server.
fn build(address: &Address, limit: Duration) -> object_store::Result<Store> {
    let seconds = format!("{} seconds", limit.as_secs());
    let timeout = ClientConfigKey::Timeout;
    // A limit of the crate's own variables stays, below the one that is held here.
    let is_said = |variable: &str| std::env::var_os(variable).is_some();
    Ok(match address.scheme {
        Scheme::S3 => {
            let mut builder = AmazonS3Builder::from_env().with_bucket_name(&address.store);
            if !is_said("AWS_TIMEOUT") {
                builder = builder.with_config(AmazonS3ConfigKey::Client(timeout), seconds);
            }
            Arc::new(builder.with_retry(once()).build()?)
        }
        Scheme::Gs => {
            let mut builder =
                GoogleCloudStorageBuilder::from_env().with_bucket_name(&address.store);
            if !is_said("GOOGLE_TIMEOUT") {
                builder = builder.with_config(GoogleConfigKey::Client(timeout), seconds);
            }
            Arc::new(builder.with_retry(once()).build()?)
        }
        Scheme::Az => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(&address.store);
            if !is_said("AZURE_TIMEOUT") {
                builder = builder.with_config(AzureConfigKey::Client(timeout), seconds);
            }
            Arc::new(builder.with_retry(once()).build()?)
        }
        Scheme::Http => {
            // Whether it is encrypted is for the address to say.
            let options = ClientOptions::new()
                .with_allow_http(true)
                .with_timeout(limit);
            let builder = HttpBuilder::new().with_url(&address.store);
            Arc::new(
                builder
                    .with_client_options(options)
                    .with_retry(once())
                    .build()?,
            )
        }
    })
}

impl Client for Remote {
    fn get(&self, range: Range<u64>) -> Result<Piece> {
        let runtime = runtime()?;
        let asked = self.asked(range.clone());
        // Beside the client's own limit, which does not cover asking for credentials.
        let limit = self.limit + Duration::from_secs(1);
        let within = async { tokio::time::timeout(limit, asked).await };
        match runtime.block_on(within) {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(problem)) => Err(self.failure(&problem, &range)),
            Err(_) => Err(self.too_slow()),
        }
    }
}

impl Remote {
    async fn asked(&self, range: Range<u64>) -> object_store::Result<Piece> {
        let options = GetOptions {
            range: Some(range.into()),
            ..GetOptions::default()
        };
        let found = match self.store.get_opts(&self.path, options).await {
            // No range of an empty object can be had.
            Err(problem) if status_of(&problem) == Some(416) => {
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                let found = self.store.get_opts(&self.path, options).await?;
                return match found.meta.size {
                    0 => Ok(piece(Vec::new(), &found.meta)),
                    _ => Err(problem),
                };
            }
            other => other?,
        };
        let meta = found.meta.clone();
        let wanted = found.range.end - found.range.start;
        let bytes = found.bytes().await?;
        if bytes.len() as u64 != wanted {
            let problem = format!("{} of {wanted} bytes came", bytes.len());
            return Err(object_store::Error::Generic {
                store: "store",
                source: problem.into(),
            });
        }
        Ok(piece(bytes.into(), &meta))
    }

    fn too_slow(&self) -> Failure {
        let seconds = self.limit.as_secs();
        Failure::passing(
            ErrorKind::TimedOut,
            format!("no whole answer came within {seconds} seconds"),
            format!("see whether the store can be reached, or allow more with {TIMEOUT}"),
        )
    }

    /// What a failed request comes to.
    fn failure(&self, problem: &object_store::Error, range: &Range<u64>) -> Failure {
        use object_store::Error as Of;
        let settings = self.address.scheme.settings();
        match problem {
            Of::NotFound { .. } => Failure::lasting(
                ErrorKind::NotFound,
                "the store has no such object (404)",
                "check the address, and that the object has been written",
            ),
            Of::PermissionDenied { .. } => Failure::lasting(
                ErrorKind::PermissionDenied,
                "the store refuses to show it (403)",
                format!("who may see it is told by {settings}"),
            ),
            Of::Unauthenticated { .. } => Failure::lasting(
                ErrorKind::PermissionDenied,
                "the store asks who wants to see it (401)",
                format!("that is told by {settings}"),
            ),
            Of::NotSupported { .. } => whole_files(),
            _ => self.other_failure(problem, range, settings),
        }
    }

    fn other_failure(
        &self,
        problem: &object_store::Error,
        range: &Range<u64>,
        settings: &str,
    ) -> Failure {
        let said = deepest(problem);
        if said.contains("non-partial response") {
            return whole_files();
        }
        let later = "try again later";
        if let Some(status) = status_of(problem) {
            return match status {
                300..400 => Failure::lasting(
                    ErrorKind::Other,
                    format!("the store leads elsewhere ({status}) and does not say where"),
                    "name the region of the bucket with AWS_REGION",
                ),
                408 | 429 | 500.. => Failure::passing(
                    ErrorKind::Other,
                    format!("the store failed ({status})"),
                    later,
                ),
                416 => Failure::lasting(
                    ErrorKind::InvalidData,
                    format!(
                        "the store has no bytes {} to {} of it (416)",
                        range.start, range.end
                    ),
                    "the object is shorter than it was: put it back, or begin anew",
                ),
                _ => Failure::lasting(
                    ErrorKind::Other,
                    format!("the store refused the request ({status})"),
                    format!("it is made by {settings}"),
                ),
            };
        }
        if said.contains("without LOCATION") {
            return Failure::lasting(
                ErrorKind::Other,
                "the store leads elsewhere and does not say where",
                "name the region of the bucket with AWS_REGION",
            );
        }
        match cause(problem).map(HttpError::kind) {
            Some(HttpErrorKind::Timeout) => self.too_slow(),
            Some(HttpErrorKind::Connect) => Failure::passing(
                ErrorKind::NotConnected,
                format!("it cannot be reached ({said})"),
                "check the address, the network and the endpoint",
            ),
            Some(_) if said.contains("too many redirects") => Failure::lasting(
                ErrorKind::Other,
                "its server leads from one address to another without end",
                "name the address that the file has in the end",
            ),
            _ => Failure::passing(
                ErrorKind::InvalidData,
                format!(
                    "of bytes {} to {} something else came ({said})",
                    range.start, range.end
                ),
                later,
            ),
        }
    }
}

fn whole_files() -> Failure {
    Failure::lasting(
        ErrorKind::Unsupported,
        "its server gives whole files only and no ranges of them",
        "copy the file here, or let a server give it that answers range requests",
    )
}

/// Bytes with what the store says of their object.
fn piece(bytes: Vec<u8>, meta: &object_store::ObjectMeta) -> Piece {
    // A server that does not say when a file changed is taken for saying 1970.
    let changed = Some(meta.last_modified).filter(|time| time.timestamp() != 0);
    let changed = || changed.map(|time| format!("changed at {}", time.to_rfc3339()));
    let tag = meta.e_tag.as_ref().filter(|tag| !tag.is_empty());
    Piece {
        bytes,
        size: meta.size,
        version: tag.map(|tag| format!("tag {tag}")).or_else(changed),
    }
}

/// The errors behind an error, the first of them itself.
fn causes<'a>(
    problem: &'a object_store::Error,
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    let mut next: Option<&'a (dyn std::error::Error + 'static)> = Some(problem);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// What went wrong in speaking to the server, if that is it.
fn cause(problem: &object_store::Error) -> Option<&HttpError> {
    causes(problem).find_map(|error| error.downcast_ref())
}

/// The status that the server answered with, if that is what failed.
fn status_of(problem: &object_store::Error) -> Option<u16> {
    // The crate keeps the type that holds it to itself; the words are held by the tests of every status.
    let text = causes(problem).map(ToString::to_string).find_map(|text| {
        let (_, after) = text.split_once("non-2xx status code: ")?;
        Some(after.get(..3)?.to_owned())
    });
    text?.parse().ok()
}

/// The last of the causes in a few words.
fn deepest(problem: &object_store::Error) -> String {
    let last = causes(problem).last().map(ToString::to_string);
    let text = last.unwrap_or_default();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_SAID) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
