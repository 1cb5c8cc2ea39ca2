//! How ranks meet: rank 0 opens a door, the others knock, and when all are there each learns where all are.

use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::cause::{Cause, NOT_ALIKE, named, placed};
use super::message::{Hello, Message};
use super::watch::{Patience, seconds};
use super::{ANOTHER_RANK, Link};
use crate::launch::{Meeting, Place};
use keel_base::error::{Error, Result};

/// What programs and versions understand each other.
const KEEL: &str = concat!("keel ", env!("CARGO_PKG_VERSION"));

/// How long a knock may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Between two knocks at a door that is not open yet.
const AGAIN: Duration = Duration::from_millis(50);

/// Where the ranks of a job meet.
#[derive(Debug)]
pub enum Door {
    /// At rank 0: its side.
    Open(TcpListener),
    /// At the others: host and port.
    At(String, u16),
}

impl Door {
    /// The door of a place that has an address.
    ///
    /// # Errors
    /// [`Error::Stopped`] where rank 0 cannot listen there.
    ///
    /// # Panics
    /// When the place has no address: one rank, or ranks that meet over MPI.
    pub fn of(place: &Place) -> Result<Door> {
        let Meeting::Address { host, port } = &place.meeting else {
            panic!("only an address has a door");
        };
        if place.rank > 0 {
            return Ok(Door::At(host.clone(), *port));
        }
        let addresses: Vec<SocketAddr> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|problem| closed(host, *port, &problem))?
            .collect();
        // Inside one machine nobody else needs to reach it.
        let is_inside = addresses.iter().all(|address| address.ip().is_loopback());
        let listener = if is_inside {
            TcpListener::bind(&*addresses)
        } else {
            // IPv6 takes IPv4 too, where there is any.
            TcpListener::bind(("::", *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)))
        };
        listener
            .map(Door::Open)
            .map_err(|problem| closed(host, *port, &problem))
    }

    /// A door of rank 0 at any free port, and that port: for ranks that can be told otherwise.
    ///
    /// # Errors
    /// [`Error::Stopped`] where nothing can be listened to.
    pub fn anywhere() -> Result<(Door, u16)> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let listener = TcpListener::bind(any).map_err(|problem| closed("0.0.0.0", 0, &problem))?;
        let port = listener
            .local_addr()
            .map_err(|problem| closed("0.0.0.0", 0, &problem))?
            .port();
        Ok((Door::Open(listener), port))
    }
}

fn closed(host: &str, port: u16, problem: &io::Error) -> Error {
    Error::stopped(
        format!("the ranks meet at {host}:{port}"),
        format!("rank 0 cannot listen there: {problem}"),
        "MASTER_ADDR is the host of rank 0, MASTER_PORT a port that nothing uses",
    )
}

/// Where one rank's host and device are named together, the host.
pub(crate) fn machine(host: &str) -> &str {
    host.split(',').next().unwrap_or(host)
}

/// All ranks, met.
pub(super) struct Met {
    pub hosts: Vec<String>,
    pub links: Vec<Link>,
    pub readers: Vec<BufReader<TcpStream>>,
}

/// Lets all ranks meet.
pub(super) fn meet(place: &Place, door: Door, host: &str, patience: &Patience) -> Result<Met> {
    let own = Hello {
        keel: KEEL.to_owned(),
        job: place.job.clone(),
        rank: place.rank,
        ranks: place.ranks,
        host: host.to_owned(),
        process: std::process::id(),
    };
    match door {
        Door::Open(listener) => receive(&own, &listener, patience),
        Door::At(host, port) => knock(&own, &host, port, patience),
    }
}

type Guest = (Hello, TcpStream, BufReader<TcpStream>);

/// Rank 0's part.
fn receive(own: &Hello, listener: &TcpListener, patience: &Patience) -> Result<Met> {
    let failed = |problem: io::Error| Error::stopped("the door of rank 0", problem, "start again");
    listener.set_nonblocking(true).map_err(failed)?;
    let until = Instant::now() + patience.joining;
    let (introduced, introductions) = mpsc::channel();
    let mut guests: Vec<Option<Guest>> = (0..own.ranks).map(|_| None).collect();
    while guests[1..].iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                let introduced = introduced.clone();
                // Whoever says nothing must not keep the others out.
                thread::spawn(move || {
                    if let Ok(guest) = introduction(stream, INTRODUCTION) {
                        let _ = introduced.send(guest);
                    }
                });
            }
            Err(problem) if problem.kind() == io::ErrorKind::WouldBlock => {}
            Err(problem) => return Err(failed(problem)),
        }
        if let Ok(guest) = introductions.recv_timeout(AGAIN / 10) {
            admit(own, &mut guests, guest)?;
        }
        if Instant::now() > until {
            return Err(missing(own, &guests, patience));
        }
    }
    let mut guests: Vec<Guest> = guests.into_iter().flatten().collect();
    guests.sort_by_key(|(hello, ..)| hello.rank);
    let hosts: Vec<String> = std::iter::once(own)
        .chain(guests.iter().map(|(hello, ..)| hello))
        .map(|hello| hello.host.clone())
        .collect();
    let (mut links, mut readers) = (Vec::new(), Vec::new());
    for (hello, stream, reader) in guests {
        // A rank that ended since is found by its reader.
        let _ = Message::Welcome(hosts.clone()).write(&mut &stream);
        links.push(link(hello.rank, stream, patience));
        readers.push(reader);
    }
    Ok(Met {
        hosts,
        links,
        readers,
    })
}

fn link(rank: usize, stream: TcpStream, patience: &Patience) -> Link {
    // Beats are small and must not wait; and who takes nothing for so long is not there.
    let _ = stream.set_nodelay(true);
    let _ = stream.set_write_timeout(Some(patience.silence));
    let _ = stream.set_read_timeout(None);
    Link {
        rank,
        stream,
        writing: Mutex::new(()),
    }
}

/// Reads who knocks.
fn introduction(stream: TcpStream, time: Duration) -> io::Result<Guest> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(time))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    match Message::read(&mut reader)? {
        Some(Message::Hello(hello)) => Ok((hello, stream, reader)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Takes a rank in, or ends the job with what is wrong with it.
fn admit(own: &Hello, guests: &mut [Option<Guest>], guest: Guest) -> Result<()> {
    let (hello, stream, _) = &guest;
    let who = |hello: &Hello| format!("rank {} ({})", hello.rank, hello.host);
    if hello.job != own.job && hello.keel == own.keel {
        // Of another job, which meets here by accident: this one goes on.
        let sentence = format!(
            "at this address the ranks of another job meet ({}, not {})",
            own.job, hello.job
        );
        let _ = end(sentence, NOT_ALIKE).write(&mut &*stream);
        return Ok(());
    }
    let present = guests.get(hello.rank).and_then(Option::as_ref);
    let (one, first) = (who(hello), who(own));
    let problem = if hello.keel != own.keel {
        format!("{one} runs {}, {first} {}", hello.keel, own.keel)
    } else if hello.ranks != own.ranks {
        format!(
            "{one} is one of {} ranks, {first} of {}",
            hello.ranks, own.ranks
        )
    } else if hello.rank == 0 || hello.rank >= own.ranks {
        format!(
            "a second process says it is {one}: process {}",
            hello.process
        )
    } else if let Some((other, ..)) = present {
        format!(
            "two processes say they are rank {}: {} on {} and {} on {}",
            hello.rank, other.process, other.host, hello.process, hello.host
        )
    } else {
        let rank = hello.rank;
        guests[rank] = Some(guest);
        return Ok(());
    };
    let message = end(problem, NOT_ALIKE);
    let _ = message.write(&mut &*stream);
    for (_, stream, _) in guests.iter().flatten() {
        let _ = message.write(&mut &*stream);
    }
    Err(cause(&message).error())
}

fn end(sentence: String, code: i32) -> Message {
    Message::End(Cause {
        rank: None,
        sentence,
        code,
    })
}

fn cause(message: &Message) -> Cause {
    match message {
        Message::End(cause) => cause.clone(),
        other => unreachable!("{other:?} is no end"),
    }
}

fn missing(own: &Hello, guests: &[Option<Guest>], patience: &Patience) -> Error {
    let absent: Vec<usize> = (1..own.ranks)
        .filter(|rank| guests[*rank].is_none())
        .collect();
    let message = end(
        format!(
            "{} did not come to rank 0 ({}) within {}",
            named(&absent),
            own.host,
            seconds(patience.joining)
        ),
        ANOTHER_RANK,
    );
    for (_, stream, _) in guests.iter().flatten() {
        let _ = message.write(&mut &*stream);
    }
    cause(&message).error()
}

/// The other ranks' part.
fn knock(own: &Hello, host: &str, port: u16, patience: &Patience) -> Result<Met> {
    let until = Instant::now() + patience.joining;
    let place = format!("{} at {host}:{port}", placed(&[0], &[host.to_owned()]));
    let mut last;
    loop {
        match knock_once(own, (host, port), until, patience) {
            Ok(Ok((hosts, stream, reader))) => {
                return Ok(Met {
                    hosts,
                    links: vec![link(0, stream, patience)],
                    readers: vec![reader],
                });
            }
            Ok(Err(cause)) => return Err(cause.error()),
            Err(problem) => last = problem,
        }
        if Instant::now() + AGAIN > until {
            return Err(Error::stopped(
                format!("rank {}", own.rank),
                format!(
                    "{place} was not found within {}: {last}",
                    seconds(patience.joining)
                ),
                "see that all ranks were started, and that this host reaches that one",
            ));
        }
        thread::sleep(AGAIN);
    }
}

type Welcomed = (Vec<String>, TcpStream, BufReader<TcpStream>);

/// One try. An error may pass: the door may not be open yet.
fn knock_once(
    own: &Hello,
    (host, port): (&str, u16),
    until: Instant,
    patience: &Patience,
) -> io::Result<std::result::Result<Welcomed, Cause>> {
    let left = || until.saturating_duration_since(Instant::now()).max(AGAIN);
    let mut problem = io::ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left().min(INTRODUCTION)) {
            Ok(stream) => {
                stream.set_write_timeout(Some(INTRODUCTION))?;
                Message::Hello(own.clone()).write(&mut &stream)?;
                // The others may come late. How long they may is rank 0's to say, whose patience began when its door opened: by this
                // rank's own clock it would give up a moment before it is told which ranks are missing.
                let time = patience.joining + patience.joining.min(INTRODUCTION);
                stream.set_read_timeout(Some(time))?;
                let mut reader = BufReader::new(stream.try_clone()?);
                let answer = match Message::read(&mut reader) {
                    Err(problem) if is_over(&problem) => {
                        return Ok(Err(silent(own, host, port, time)));
                    }
                    answer => answer?,
                };
                return match answer {
                    Some(Message::Welcome(hosts)) if hosts.len() == own.ranks => {
                        Ok(Ok((hosts, stream, reader)))
                    }
                    Some(Message::End(cause)) => Ok(Err(cause)),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            Err(refused) => problem = refused,
        }
    }
    Err(problem)
}

/// Whether a read has waited as long as it may.
fn is_over(problem: &io::Error) -> bool {
    [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&problem.kind())
}

/// What a rank ends with that rank 0 has let in and then told nothing.
fn silent(own: &Hello, host: &str, port: u16, time: Duration) -> Cause {
    let sentence = format!(
        "rank 0 at {host}:{port} let rank {} in and said nothing for {}: it hangs, or something else listens there",
        own.rank,
        seconds(time)
    );
    Cause {
        rank: None,
        sentence,
        code: ANOTHER_RANK,
    }
}
