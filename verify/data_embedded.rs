//! The embedded pairs are whole, and read in time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use keel::data::embedded::{Artist, Concepts, NOTO, TWEMOJI};

#[test]
fn embedded_shards_hold_every_concept_by_both_artists() {
    let start = Instant::now();
    let concepts = Concepts::load(NOTO, TWEMOJI).unwrap();
    println!("read in {:?}", start.elapsed());
    assert_eq!(concepts.entries.len(), 1906);
    let names: BTreeSet<&str> = concepts.entries.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), 1906);
    for concept in &concepts.entries {
        assert!(
            concept.name.is_ascii() && !concept.keywords.is_empty(),
            "{}",
            concept.name
        );
        for artist in Artist::ALL {
            let opacity = concept
                .picture(artist)
                .rgba
                .chunks_exact(4)
                .map(|pixel| pixel[3]);
            let seen = opacity.filter(|&opacity| opacity > 128).count();
            assert!(
                seen > 64,
                "{} by {} shows {seen} pixels",
                concept.name,
                artist.name()
            );
        }
        assert_ne!(
            concept.picture(Artist::Noto),
            concept.picture(Artist::Twemoji)
        );
    }
}
