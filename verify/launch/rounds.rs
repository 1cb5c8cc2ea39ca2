//! Collectives by a seed, what each rank sends in them, and what threads of one process receive: what every other engine is held to.

use keel::random::Stream;
use keel::ranks::{Collective, Engine, Kind, Received, Sent, local};

/// Collectives that are begun one after the other before any is finished.
pub type Round = Vec<Collective>;

/// The rounds of a seed: slices of no byte, of some and of many, with ragged ends.
pub fn rounds(seed: u64, count: usize) -> Vec<Round> {
    let mut random = Stream::of_seed(seed);
    let mut one = || Collective {
        kind: [Kind::AllGather, Kind::Exchange][random.below(2)],
        slice: [0, 1, 7, 4096, 100_003][random.below(5)],
    };
    let lengths = (0..count).map(|round| 1 + round % 4);
    lengths
        .map(|length| (0..length).map(|_| one()).collect())
        .collect()
}

/// What `rank` sends in collective `number`, of all rounds.
pub fn sent(rank: usize, number: usize, bytes: usize) -> Vec<u8> {
    let mut random = Stream::of_seed((rank * 1_000_003 + number) as u64);
    let words = (0..bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes());
    words.take(bytes).collect()
}

/// All that one rank receives, by an engine in host memory: of each round the last that was begun first.
pub fn received(engine: &mut dyn Engine, rounds: &[Round]) -> Vec<Vec<u8>> {
    let world = engine.world();
    let (mut all, mut number) = (Vec::new(), 0);
    for round in rounds {
        let mut begun = Vec::new();
        for collective in round {
            let bytes = sent(world.rank, number, collective.sent(world.ranks));
            number += 1;
            begun.push(engine.begin(*collective, Sent::Host(&bytes)).unwrap());
        }
        for ticket in begun.into_iter().rev() {
            let mut bytes = vec![0xaa; ticket.collective.received(world.ranks)];
            engine.finish(ticket, Received::Host(&mut bytes)).unwrap();
            all.push(bytes);
        }
    }
    all
}

/// What `rank` of `ranks` receives where ranks are threads.
pub fn received_by_a_thread(rank: usize, ranks: usize, rounds: &[Round]) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = local::seats(ranks)
            .into_iter()
            .map(|seat| {
                scope.spawn(move || received(&mut **seat.engine().unwrap().lock().unwrap(), rounds))
            })
            .collect();
        let all: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        all[rank].clone()
    })
}
