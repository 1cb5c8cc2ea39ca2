//! `keel serve`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{count, size};
use super::{ComputeArgs, announce, heading, print_line, print_warnings};
use keel_base::error::{Error, Result};
use keel_serve::{ServeSettings, Server};
use keel_train::EvalRun;

/// The largest limit of a request, bytes: its counts have 32 bits.
const MOST_REQUEST: u64 = 1 << 30;

/// Options of `keel serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// A run's folder (its newest checkpoint answers) or one checkpoint.
    run: PathBuf,
    /// Answer with the checkpoint at the end of this stage instead of the newest one.
    #[arg(long, value_name = "STAGE", help_heading = heading::RUN)]
    stage: Option<String>,
    /// Answer with the exponential moving average of the weights that the checkpoint's stage trained, which a stage with ema_decay
    /// keeps.
    #[arg(long, help_heading = heading::RUN)]
    ema: bool,
    /// The name of the model in requests and replies [default: the name of the run's folder].
    #[arg(long, value_name = "NAME", help_heading = heading::RUN)]
    name: Option<String>,
    /// The address to listen at: of this machine alone, unless another is given. There is no password.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = heading::RUN)]
    host: IpAddr,
    /// The port to listen at; 0 takes a free one.
    #[arg(long, value_name = "N", default_value = "8000", help_heading = heading::RUN)]
    port: u16,
    /// Answers that are generated side by side.
    #[arg(long, value_name = "N", value_parser = count, default_value = "4", help_heading = heading::RUN)]
    streams: usize,
    /// Requests that wait beside those; more are refused with status 429.
    #[arg(long, value_name = "N", value_parser = count, default_value = "64", help_heading = heading::RUN)]
    queue: usize,
    /// The largest request, images included; a larger one is refused with status 413.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "32M", help_heading = heading::RUN)]
    max_request: u64,
    /// Seconds that a client may take to send a request, and half of those that it may take to read the end of a reply.
    #[arg(long, value_name = "SECONDS", value_parser = count, default_value = "30", help_heading = heading::RUN)]
    patience: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    if args.max_request > MOST_REQUEST {
        let found = args.max_request;
        return Err(Error::setting("--max-request", "at most 1G", found));
    }
    let compute = args.compute.choose()?;
    let run = match &args.stage {
        Some(stage) => EvalRun::open_stage(&args.run, stage, &compute)?,
        None => EvalRun::open(&args.run, &compute)?,
    };
    let run = match args.ema {
        true => run.with_averages()?,
        false => run,
    };
    let checkpoint = run.path().to_owned();
    let model = args.name.clone().unwrap_or_else(|| run.name());
    let settings = ServeSettings {
        address: SocketAddr::new(args.host, args.port),
        model: model.clone(),
        streams: args.streams,
        queue: args.queue,
        most_request: args.max_request as usize,
        patience: Duration::from_secs(args.patience as u64),
    };
    let server = Server::open(run, compute.clone(), settings)?;
    print_warnings(&server.take_warnings());
    announce(&compute)?;
    let address = server.address();
    print_line(format!("checkpoint: {}", checkpoint.display()))?;
    print_line(format!(
        "model {model} at http://{address}/v1, a page at http://{address}/"
    ))?;
    server.serve()
}
