//! What is answered at which path.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::completion::Completion;
use super::engine::{AnswerJob, Heard, Job, LookJob};
use super::fault::Fault;
use super::looks::look_json;
use super::pace::{Pace, Patience, Phase};
use super::reply::{self, EventSender, Reply};
use super::request::ChatRequest;
use keel_base::clock::Clock;
use keel_base::error::Result;
use keel_engine::executor::SelectedDevice;
use keel_eval::{Sampling, StreamPrompt};
use keel_train::{Chat, EvalRun};

/// Requests of the largest size whose bodies are held at once.
const LARGEST_AT_ONCE: usize = 8;
/// Images that are decoded and prepared at once: each may take some hundred megabytes.
const PREPARED_AT_ONCE: usize = 2;
/// Requests of a hundred of pages come with less.
const LEAST_PERMIT: usize = 1024;

/// Everything a request needs.
pub(crate) struct Service {
    pub run: Arc<EvalRun>,
    /// The name it answers by.
    pub model: String,
    pub jobs: SyncSender<Job>,
    /// Requests that may wait.
    pub queue: usize,
    /// Largest body, bytes.
    pub most_request: usize,
    pub patience: Patience,
    pub compute: SelectedDevice,
    pub clock: Clock,
    bodies: Arc<Semaphore>,
    prepared: Arc<Semaphore>,
    stages: Arc<Semaphore>,
}

/// A request that was understood, on its way to the engine.
struct Put {
    request: ChatRequest,
    prompt: StreamPrompt,
}

impl Service {
    pub fn new(
        run: Arc<EvalRun>,
        model: String,
        (jobs, queue): (SyncSender<Job>, usize),
        (most_request, patience): (usize, Patience),
        compute: SelectedDevice,
    ) -> Service {
        let permits = LARGEST_AT_ONCE * most_request.div_ceil(LEAST_PERMIT);
        Service {
            run,
            model,
            jobs,
            queue,
            most_request,
            patience,
            compute,
            clock: Clock::default(),
            bodies: Arc::new(Semaphore::new(permits)),
            prepared: Arc::new(Semaphore::new(PREPARED_AT_ONCE)),
            stages: Arc::new(Semaphore::new(1)),
        }
    }

    /// The reply to a request. `pace` is its connection's.
    pub async fn reply(self: Arc<Self>, request: Request<Incoming>, pace: Pace) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let wanted = match path.as_str() {
            "/v1/chat/completions" | "/look" | "/stages" => "POST",
            "/" | "/about" | "/health" | "/v1/models" => "GET",
            path if path.starts_with("/v1/models/") => "GET",
            _ => return reply::fault(&Fault::path(&method, &path), None),
        };
        let is_allowed = match wanted {
            "POST" => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        };
        if !is_allowed {
            return reply::fault(&Fault::method(&method, &path, wanted), Some(wanted));
        }
        let outcome = match path.as_str() {
            "/" => Ok(reply::page(include_str!("page.html"))),
            "/health" => Ok(reply::json(&json!({"status": "ok"}))),
            "/about" => Ok(reply::json(&self.about())),
            "/v1/models" => Ok(reply::json(
                &json!({"object": "list", "data": [self.model_json()]}),
            )),
            "/v1/chat/completions" => self.complete(request, pace).await,
            "/look" => self.look(request, &pace).await,
            "/stages" => self.stages(request, pace).await,
            path => match path.strip_prefix("/v1/models/") {
                Some(name) if name == self.model => Ok(reply::json(&self.model_json())),
                name => Err(Fault::model(name.unwrap_or_default(), &self.model)),
            },
        };
        outcome.unwrap_or_else(|fault| reply::fault(&fault, None))
    }

    fn model_json(&self) -> Json {
        json!({"id": self.model, "object": "model", "created": 0, "owned_by": "keel"})
    }

    fn about(&self) -> Json {
        let stages = self.run.stages_before();
        let stages: Vec<String> = stages.into_iter().map(|(name, _)| name).collect();
        json!({
            "model": self.model,
            "stage": self.run.stage_name(),
            "stages": stages,
            "tokens": self.run.tokens(),
            "images": self.run.most_images(),
            "request_bytes": self.most_request,
            "device": self.compute.describe(),
        })
    }

    /// Reads a request and prepares its images.
    async fn put(&self, request: Request<Incoming>, pace: &Pace) -> Result<Put, Fault> {
        let (body, permit) = self.body(request, pace).await?;
        let prepared = self.prepared.clone().acquire_owned().await;
        let prepared = prepared.map_err(|_| Fault::ending())?;
        let (run, model) = (self.run.clone(), self.model.clone());
        let work = move || {
            // The body's bytes count until its images are numbers.
            let _held = (permit, prepared);
            let request = ChatRequest::read(&body, &model, run.most_images())?;
            let prompt = run.put(&request.chat).map_err(Fault::of_run)?;
            Ok(Put { request, prompt })
        };
        let task = tokio::task::spawn_blocking(work);
        task.await.map_err(Fault::server)?
    }

    /// The bytes of a request's body, and what holds their place.
    async fn body(
        &self,
        request: Request<Incoming>,
        pace: &Pace,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Fault> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let media_type = kind.split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(Fault::media_type(kind));
        }
        let body = request.into_body();
        let announced = body.size_hint();
        if announced.lower() > self.most_request as u64 {
            return Err(Fault::too_large(self.most_request));
        }
        // A body that does not say how long it is may be as long as any.
        let bytes = announced
            .upper()
            .map_or(self.most_request, |bytes| bytes as usize);
        let permits = bytes.div_ceil(LEAST_PERMIT) as u32;
        let permit = self.bodies.clone().try_acquire_many_owned(permits);
        let permit = permit.map_err(|_| Fault::bodies())?;
        pace.set(Phase::Receiving);
        let read = Limited::new(body, self.most_request).collect();
        let read = tokio::time::timeout(self.patience.0, read).await;
        pace.set(Phase::Working);
        match read {
            Err(_) => Err(Fault::too_slow()),
            Ok(Ok(body)) => Ok((body.to_bytes().to_vec(), permit)),
            Ok(Err(problem)) if problem.is::<LengthLimitError>() => {
                Err(Fault::too_large(self.most_request))
            }
            Ok(Err(_)) => Err(Fault::cut_off()),
        }
    }

    fn send(&self, job: Job) -> Result<(), Fault> {
        self.jobs.try_send(job).map_err(|problem| match problem {
            TrySendError::Full(_) => Fault::queue(self.queue),
            TrySendError::Disconnected(_) => Fault::ending(),
        })
    }

    /// `POST /v1/chat/completions`.
    async fn complete(&self, request: Request<Incoming>, pace: Pace) -> Result<Reply, Fault> {
        let Put { request, prompt } = self.put(request, &pace).await?;
        if request.answer.is_some() {
            let message = "answer is not offered here; leave it out";
            return Err(Fault::unsupported("answer", message));
        }
        let created = self.clock.since_1970().as_secs();
        let mut completion = Completion::new(self.model.clone(), created, prompt.ids.len());
        let room = self.run.tokens() - prompt.ids.len();
        let (hears, mut heard) = unbounded_channel();
        self.send(Job::Answer(AnswerJob {
            prompt,
            sampling: request.sampling,
            most_tokens: request.most_tokens.map_or(room, |most| most.min(room)),
            stops: request.stops,
            hears,
        }))?;
        if request.is_streamed {
            let (sender, reply) = reply::events();
            tokio::spawn(stream(
                completion,
                heard,
                sender,
                pace,
                request.counts_usage,
            ));
            return Ok(reply);
        }
        while let Some(heard) = heard.recv().await {
            match heard {
                Heard::Text(text) => completion.text.push_str(&text),
                Heard::Ended(ended) => return Ok(reply::json(&completion.whole(ended))),
                Heard::Failed(problem) => return Err(Fault::server(problem)),
            }
        }
        Err(Fault::ending())
    }

    /// `POST /look`: where the model looked for each token of an answer.
    async fn look(&self, request: Request<Incoming>, pace: &Pace) -> Result<Reply, Fault> {
        let Put { request, prompt } = self.put(request, pace).await?;
        let tiles = self.run.tile_grid(&request.chat, prompt.shown.as_deref());
        let Some(answer) = request.answer else {
            let message = "answer is missing: the text to be looked at";
            return Err(Fault::request("answer", message));
        };
        let answer = self.run.ids_of(&answer);
        let (hears, heard) = oneshot::channel();
        let shown = prompt.shown.clone();
        let ids = answer.clone();
        self.send(Job::Look(LookJob {
            prompt,
            answer,
            hears,
        }))?;
        let look = heard.await.map_err(|_| Fault::ending())?;
        let look = look.map_err(Fault::server)?;
        let run = self.run.clone();
        let work = move || look_json(&run, &look, &ids, shown.as_deref(), tiles);
        let json = tokio::task::spawn_blocking(work).await;
        Ok(reply::json(&json.map_err(Fault::server)?))
    }

    /// `POST /stages`: what the run's stages before this one answer, one after the other.
    async fn stages(&self, request: Request<Incoming>, pace: Pace) -> Result<Reply, Fault> {
        let Put { request, .. } = self.put(request, &pace).await?;
        let permit = self.stages.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Fault::queue(1))?;
        let (sender, reply) = reply::events();
        let (compute, stages) = (self.compute.clone(), self.run.stages_before());
        tokio::task::spawn_blocking(move || {
            let _held = permit;
            for (stage, path) in stages {
                let answer = stage_answer(&path, &compute, &request.chat);
                let event = match answer {
                    Ok(answer) => json!({"stage": stage, "answer": answer}),
                    Err(problem) => json!({"stage": stage, "problem": problem.to_string()}),
                };
                if !sender.send(&event) {
                    return;
                }
            }
            sender.done();
            pace.set(Phase::Sending);
        });
        Ok(reply)
    }
}

/// What the checkpoint at `path` answers, by its likeliest tokens.
fn stage_answer(path: &Path, compute: &SelectedDevice, chat: &Chat) -> Result<String> {
    let run = EvalRun::open(path, compute)?;
    let prompt = run.put(chat)?;
    let room = run.tokens() - prompt.ids.len();
    let mut streams = run.streams(1, false)?;
    let begun = streams.begin(&prompt, Sampling::Greedy)?;
    let (mut ids, mut token) = (Vec::new(), begun.token);
    while token != run.end_token() {
        ids.push(token);
        if ids.len() >= room {
            break;
        }
        let next = streams.step()?;
        token = next.first().map_or(run.end_token(), |(_, token)| *token);
    }
    Ok(run.text_of(&ids))
}

/// Hands an answer on as it comes.
async fn stream(
    completion: Completion,
    mut heard: UnboundedReceiver<Heard>,
    sender: EventSender,
    pace: Pace,
    counts_usage: bool,
) {
    sender.send(&completion.opening());
    while let Some(heard) = heard.recv().await {
        let is_heard = match heard {
            Heard::Text(text) => sender.send(&completion.piece(&text)),
            Heard::Ended(ended) => {
                sender.send(&completion.ending(ended));
                if counts_usage {
                    sender.send(&completion.usage_event(ended));
                }
                sender.done();
                break;
            }
            Heard::Failed(problem) => {
                sender.send(&Fault::server(problem).to_json());
                break;
            }
        };
        if !is_heard {
            break;
        }
    }
    // From here on the reader has the time that a reader gets; the engine has long gone on.
    pace.set(Phase::Sending);
}
