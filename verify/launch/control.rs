//! The control channel inside one process: ranks as threads that meet over TCP, vote, and are refused where they were not started
//! alike. That processes end in sentences is for processes.rs.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use keel::error::Result;
use keel::ranks::Votes;
use keel::ranks::control::{
    ANOTHER_RANK, Cause, Control, Doing, Door, Fact, NOT_ALIKE, Patience, Phase, Stragglers, Wait,
    Watch, check_alike, slowest,
};
use keel::ranks::launch::{Meeting, Place};

const SECOND: Duration = Duration::from_secs(1);

fn place(rank: usize, ranks: usize) -> Place {
    Place {
        rank,
        ranks,
        local_rank: rank,
        local_ranks: None,
        meeting: Meeting::Mpi { host: None },
        job: "a test".into(),
        ..Place::alone()
    }
}

/// Signs of life come often, so that what is over is noticed soon.
fn patience() -> Patience {
    Patience {
        beat: Duration::from_millis(100),
        joining: Duration::from_secs(30),
        ..Patience::default()
    }
}

/// What ended a rank, with its exit code.
type Ended = Arc<Mutex<Vec<(Cause, i32)>>>;

/// Joins `places` on threads of their own and runs `of_rank` on each; `change` may make one come otherwise. Returns what each
/// found, and what ended it.
fn on_ranks<T: Send>(
    places: &[Place],
    patience: Patience,
    of_rank: impl Fn(Result<Control>) -> T + Sync,
) -> Vec<(T, Vec<(Cause, i32)>)> {
    let (door, port) = Door::anywhere().unwrap();
    let mut doors = vec![door];
    doors.extend(
        places[1..]
            .iter()
            .map(|_| Door::At("127.0.0.1".into(), port)),
    );
    std::thread::scope(|scope| {
        let start = |(place, door): (&Place, Door)| {
            let (place, of_rank) = (place.clone(), &of_rank);
            scope.spawn(move || {
                let ended = Ended::default();
                let notes = ended.clone();
                let end =
                    move |cause: &Cause, code| notes.lock().unwrap().push((cause.clone(), code));
                let host = format!("node-{}", place.rank / 2);
                let joined = Control::join(&place, door, &host, patience, Box::new(end));
                let found = of_rank(joined);
                (found, ended.lock().unwrap().clone())
            })
        };
        let threads: Vec<_> = places.iter().zip(doors).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn places(ranks: usize) -> Vec<Place> {
    (0..ranks).map(|rank| place(rank, ranks)).collect()
}

#[test]
fn votes_bring_the_bytes_of_all_ranks_in_their_order() {
    for ranks in 2..=5 {
        let outcomes = on_ranks(&places(ranks), patience(), |control| {
            let control = control.unwrap();
            let rank = control.world().rank;
            assert_eq!(
                control.world().local_ranks,
                if ranks - rank / 2 * 2 == 1 { 1 } else { 2 }
            );
            // Of any length, none included, and several votes one after the other.
            let votes: Vec<Vec<Vec<u8>>> = (0..20_usize)
                .map(|vote| {
                    control
                        .gather("bytes", &vec![rank as u8; rank * vote * 1000])
                        .unwrap()
                })
                .collect();
            control.leave().unwrap();
            votes
        });
        for (votes, ended) in outcomes {
            assert_eq!(ended, []);
            for (vote, parts) in votes.iter().enumerate() {
                let want: Vec<Vec<u8>> = (0..ranks)
                    .map(|rank| vec![rank as u8; rank * vote * 1000])
                    .collect();
                assert_eq!(*parts, want);
            }
        }
    }
}

#[test]
fn ranks_that_were_started_otherwise_are_named_with_both_values() {
    let outcomes = on_ranks(&places(4), patience(), |control| {
        let control = control.unwrap();
        let rank = control.world().rank;
        let facts = [
            Fact::new("build", "0.1.0"),
            Fact::new("recipe", if rank == 2 { "d4" } else { "a7" }),
        ];
        let problem = check_alike(&control, control.hosts(), &facts).unwrap_err();
        control.leave().unwrap();
        (problem.is_mistake(), problem.to_string())
    });
    for ((is_mistake, said), _) in outcomes {
        assert!(is_mistake, "{said}");
        let want = "rank 2 (node-1): it has another recipe than the others: d4, not a7";
        assert!(said.contains(want), "{said}");
    }
}

#[test]
fn ranks_that_vote_on_different_things_end_with_both() {
    let outcomes = on_ranks(&places(3), patience(), |control| {
        let control = control.unwrap();
        let what = if control.world().rank == 1 {
            "a save"
        } else {
            "a step"
        };
        control.gather(what, &[]).unwrap_err().to_string()
    });
    for (said, ended) in outcomes {
        assert!(said.contains("a save") && said.contains("a step"), "{said}");
        assert!(said.contains("rank 1 (node-0)"), "{said}");
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].1, NOT_ALIKE);
    }
}

#[test]
fn a_rank_that_gives_up_is_quoted_by_all_others() {
    let outcomes = on_ranks(&places(4), patience(), |control| {
        let control = control.unwrap();
        if control.world().rank == 3 {
            control.give_up("its disk is full");
            return String::new();
        }
        control.gather("a step", &[]).unwrap_err().to_string()
    });
    for (rank, (said, ended)) in outcomes.iter().enumerate().take(3) {
        assert!(
            said.contains("rank 3 (node-1) ended: its disk is full"),
            "{rank}: {said}"
        );
        assert_eq!((ended.len(), ended[0].1), (1, ANOTHER_RANK));
    }
}

#[test]
fn a_rank_that_is_gone_is_named_within_a_second_of_signs_of_life() {
    let began = Instant::now();
    let outcomes = on_ranks(&places(4), patience(), |control| {
        let control = control.unwrap();
        control.progress().enter(Phase::Step, Some(7));
        control.gather("a step", &[]).unwrap();
        if control.world().rank == 2 {
            // Its process ends: the connection closes without a word.
            drop(control);
            return String::new();
        }
        control.gather("a step", &[]).unwrap_err().to_string()
    });
    for (rank, (said, ended)) in outcomes.iter().enumerate().filter(|(rank, _)| *rank != 2) {
        assert!(said.contains("rank 2 (node-1) is gone"), "{rank}: {said}");
        assert_eq!((ended.len(), ended[0].1), (1, ANOTHER_RANK));
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

/// The sentence and the exit code with which rank 0 refuses `second` beside itself.
fn refused(second: Place) -> String {
    let outcomes = on_ranks(&[place(0, 2), second], patience(), |control| {
        let problem = control.err().expect("they do not fit");
        assert!(problem.is_mistake(), "{problem}");
        problem.to_string()
    });
    assert_eq!(outcomes[0].0, outcomes[1].0, "both say the same");
    outcomes[0].0.clone()
}

#[test]
fn ranks_that_do_not_fit_together_are_refused_as_they_meet() {
    let said = refused(place(1, 4));
    assert!(
        said.contains("rank 1 (node-0) is one of 4 ranks, rank 0 (node-0) of 2"),
        "{said}"
    );
    let said = refused(Place {
        rank: 2,
        ..place(1, 2)
    });
    assert!(
        said.contains("a second process says it is rank 2"),
        "{said}"
    );
}

#[test]
fn ranks_that_do_not_come_are_named_when_patience_ends() {
    let short = Patience {
        joining: SECOND,
        ..patience()
    };
    let three = [place(0, 4), place(2, 4)];
    let outcomes = on_ranks(&three, short, |control| control.err().unwrap().to_string());
    for (said, _) in outcomes {
        assert!(
            said.contains("ranks 1, 3 did not come to rank 0 (node-0) within 1.0 s"),
            "{said}"
        );
    }
    // Somebody is behind this door, and says nothing.
    let (Door::Open(listener), port) = Door::anywhere().unwrap() else {
        panic!("a door of rank 0");
    };
    let door = Door::At("127.0.0.1".into(), port);
    let end = Box::new(|_: &Cause, _| ());
    let silent = Control::join(&place(1, 2), door, "node-b", short, end).err();
    let said = silent.unwrap().to_string();
    let want = format!("rank 0 at 127.0.0.1:{port} let rank 1 in and said nothing for 2.0 s");
    assert!(said.contains(&want), "{said}");
    drop(listener);
    // Nobody is behind this door.
    let (Door::Open(listener), port) = Door::anywhere().unwrap() else {
        panic!("a door of rank 0");
    };
    drop(listener);
    let door = Door::At("127.0.0.1".into(), port);
    let end = Box::new(|_: &Cause, _| ());
    let problem = Control::join(&place(1, 2), door, "node-b", short, end)
        .err()
        .unwrap();
    let said = problem.to_string();
    assert!(
        said.contains(&format!("127.0.0.1:{port}")) && said.contains("within 1.0 s"),
        "{said}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whoever else comes to the port: bytes that are no message, messages that no rank sends, ranks of other jobs.
    #[test]
    fn strangers_at_the_door_keep_nobody_out(
        bytes in prop::collection::vec(any::<u8>(), 0..200), length in any::<u32>(), is_long: bool,
    ) {
        let (door, port) = Door::anywhere().unwrap();
        let end = || Box::new(|_: &Cause, _| ());
        let first = std::thread::spawn(move || Control::join(&place(0, 2), door, "a", patience(), end()));
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let length = if is_long { length } else { bytes.len() as u32 };
        let _ = stranger.write_all(&[&length.to_le_bytes()[..], &bytes].concat());
        let other = Place { job: "another".into(), ..place(1, 2) };
        let said = Control::join(&other, Door::At("127.0.0.1".into(), port), "c", patience(), end()).err().unwrap();
        prop_assert!(said.to_string().contains("the ranks of another job meet"), "{}", said);
        let second = Control::join(&place(1, 2), Door::At("127.0.0.1".into(), port), "b", patience(), end()).unwrap();
        let first = first.join().unwrap().unwrap();
        prop_assert_eq!(first.hosts(), ["a", "b"]);
        let other = std::thread::spawn(move || second.leave().is_ok());
        prop_assert!(first.leave().is_ok() && other.join().unwrap());
        drop(stranger);
    }
}

/// Three ranks on two hosts, watched from the moment that is returned.
fn watch() -> (Watch, Instant) {
    let hosts = ["node-a", "node-b", "node-b"].map(str::to_owned).to_vec();
    let now = Instant::now();
    (Watch::new(Patience::default(), hosts, now), now)
}

fn doing(phase: Phase, step: u64, waits_in: Option<Wait>, moves: u64) -> Doing {
    Doing {
        phase,
        step,
        waits_in,
        moves,
        waited: Duration::ZERO,
    }
}

/// Beats of all ranks but `without`, a second apart, until something is found; what it says and after how many seconds.
fn beats(
    watch: &mut Watch,
    from: Instant,
    without: &[usize],
    does: impl Fn(usize, u32) -> Doing,
) -> (String, u32) {
    for second in 1..10_000 {
        let now = from + SECOND * second;
        for rank in (0..3).filter(|rank| !without.contains(rank)) {
            watch.does(rank, does(rank, second), now);
        }
        if let Some(cause) = watch.judge(now) {
            assert_eq!(cause.code, ANOTHER_RANK);
            return (cause.sentence, second);
        }
    }
    panic!("nothing was found in hours");
}

#[test]
fn a_host_that_falls_silent_is_named_once_patience_ends() {
    let (mut watch, now) = watch();
    let step =
        |rank: usize, second: u32| doing(Phase::Step, 9, None, u64::from(second) + rank as u64);
    (0..3).for_each(|rank| watch.does(rank, step(rank, 0), now));
    let (said, after) = beats(&mut watch, now, &[1, 2], step);
    assert_eq!(after, 15);
    let want = "nothing was heard of ranks 1, 2 (node-b) for 15 s, at step 9, while it computes";
    assert_eq!(said, want);
    // Rank 0 is all that the others look at.
    let (mut others, now) = self::watch();
    assert_eq!(others.judge_first(now + SECOND * 14), None);
    let said = others.judge_first(now + SECOND * 15).unwrap().sentence;
    assert!(
        said.contains("nothing was heard of rank 0 (node-a) for 15 s"),
        "{said}"
    );
    // However short the patience, nobody is named who was heard just now.
    let patience = Patience {
        silence: SECOND * 2,
        ..Patience::default()
    };
    let hosts = ["node-a", "node-b", "node-b"].map(str::to_owned);
    let mut short = Watch::new(patience, hosts.to_vec(), now);
    let (said, after) = beats(&mut short, now, &[2], step);
    assert_eq!(after, 2);
    assert!(
        said.starts_with("nothing was heard of rank 2 (node-b) for 2.0 s"),
        "{said}"
    );
    // A machine that slept was not left alone.
    others.forgive(now + SECOND * 15);
    assert_eq!(others.judge_first(now + SECOND * 16), None);
}

#[test]
fn ranks_that_stand_still_together_are_named_together() {
    let (mut watch, now) = watch();
    // In a collective on their devices, of which the host sees nothing: the last sign of each came a second after another's.
    let step = |rank: usize, second: u32| {
        let moves = second.min(rank as u32 + 1);
        doing(Phase::Step, 9, None, u64::from(moves))
    };
    let (said, after) = beats(&mut watch, now, &[], step);
    assert_eq!(after, 61);
    let want = "ranks 0–2 (node-a, node-b) did nothing for 60 s, at step 9";
    assert!(said.contains(want), "{said}");
}

#[test]
fn a_rank_that_hangs_while_others_wait_is_named_with_what_it_was_doing() {
    let (mut watch, now) = watch();
    let (said, after) = beats(&mut watch, now, &[], |rank, _| match rank {
        1 => doing(Phase::Data, 30, None, 4),
        _ => doing(Phase::Step, 30, Some(Wait::Collective(12)), 4),
    });
    assert_eq!(after, 61, "a minute after its last move");
    assert_eq!(
        said,
        "rank 1 (node-b) did nothing for 60 s, at step 30, while it makes samples; ranks 0, 2 wait in collective 12"
    );
}

#[test]
fn ranks_that_all_wait_are_told_where_each_does() {
    let (mut watch, now) = watch();
    let waits = |rank: usize, _| {
        doing(
            Phase::Step,
            3,
            Some(Wait::Collective(7 + rank as u64 / 2)),
            1,
        )
    };
    let (said, _) = beats(&mut watch, now, &[], waits);
    assert!(
        said.starts_with("ranks 0, 1 wait in collective 7, rank 2 waits in collective 8 for 60 s"),
        "{said}"
    );
}

#[test]
fn saving_and_slow_steps_have_patience_of_their_own() {
    let (mut watch, now) = watch();
    let saves = |rank: usize, _| match rank {
        0 => doing(Phase::Save, 3, None, 1),
        _ => doing(Phase::Step, 3, Some(Wait::Vote(2)), 1),
    };
    assert_eq!(
        beats(&mut watch, now, &[], saves).1,
        1801,
        "a disk may be slow"
    );
    // Steps of 20 s: ten of them are allowed, and not a minute.
    let (mut watch, now) = self::watch();
    let until = 600;
    let steps = |rank: usize, second: u32| {
        let step = u64::from(second.min(until)) / 20;
        let waits = (rank != 1 && second > until).then_some(Wait::Collective(1));
        doing(Phase::Step, step, waits, u64::from(second.min(until)))
    };
    let (_, after) = beats(&mut watch, now, &[], steps);
    assert_eq!(after, until + 200);
}

#[test]
fn ranks_that_have_left_are_not_missed() {
    let (mut watch, now) = watch();
    (1..3).for_each(|rank| watch.left(rank));
    watch.closed(1, now);
    watch.does(0, doing(Phase::Save, 3, None, 1), now + SECOND * 100);
    assert_eq!(watch.judge(now + SECOND * 100), None);
}

#[test]
fn the_rank_that_waits_least_is_the_slowest() {
    let waited = [40, 2, 45, 41].map(Duration::from_millis);
    let found = slowest(&waited).unwrap();
    assert_eq!((found.rank, found.by), (1, Duration::from_millis(39)));
    assert!(slowest(&waited[..1]).is_none());
    let mut stragglers = Stragglers::default();
    let step = Duration::from_millis(200);
    let found: Vec<u32> = (1..=25)
        .filter(|_| stragglers.note(&waited, step).is_some())
        .collect();
    assert_eq!(found, [10, 20], "after ten steps, and every ten again");
    // Once another was slower, it begins anew; and what is a small part of a step is not worth a word.
    stragglers.note(&[9, 90, 80, 85].map(Duration::from_millis), step);
    assert!((0..9).all(|_| stragglers.note(&waited, step).is_none()));
    assert!((0..99).all(|_| stragglers.note(&waited, SECOND).is_none()));
}

#[test]
fn waits_are_compared_where_all_ranks_are_in_steps() {
    let (mut watch, now) = watch();
    let tell = |watch: &mut Watch, second: u32, phase| {
        let waited = [4, 1, 3].map(|tenths| SECOND * second * tenths / 10);
        for (rank, waited) in waited.into_iter().enumerate() {
            let doing = Doing {
                waited,
                ..doing(phase, 1, None, u64::from(second))
            };
            watch.does(rank, doing, now + SECOND * second);
        }
        watch.take_waits(now + SECOND * second)
    };
    assert_eq!(
        tell(&mut watch, 9, Phase::Step),
        None,
        "ten seconds are a while"
    );
    assert_eq!(
        tell(&mut watch, 10, Phase::Step),
        None,
        "it began otherwise"
    );
    let waits = [4, 1, 3].map(|tenths| SECOND * tenths);
    assert_eq!(
        tell(&mut watch, 20, Phase::Step),
        Some((waits.to_vec(), SECOND * 10))
    );
    assert_eq!(tell(&mut watch, 30, Phase::Save), None);
}
