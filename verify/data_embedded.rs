//! The embedded pairs are whole, and read in time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Instant;

use keel::emoji::embedded::{EmbeddedConcept, EmbeddedConcepts, NOTO, TWEMOJI, Vendor};

/// What the library makes its concepts of.
pub static CONCEPTS: LazyLock<Vec<EmbeddedConcept>> =
    LazyLock::new(|| EmbeddedConcepts::load(NOTO, TWEMOJI).unwrap().entries);

#[test]
fn embedded_shards_hold_every_concept_by_both_vendors() {
    let start = Instant::now();
    let concepts = EmbeddedConcepts::load(NOTO, TWEMOJI).unwrap();
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
        for vendor in Vendor::ALL {
            let image = concept.image(vendor).unwrap();
            let mut counted: HashMap<[u8; 4], u64> = HashMap::new();
            let pixels = image.rgba.as_chunks::<4>().0;
            for run in pixels.chunk_by(|one, next| one == next) {
                *counted.entry(run[0]).or_default() += run.len() as u64;
            }
            let mut told: HashMap<[u8; 4], u64> = HashMap::new();
            for (colour, pixels) in concept.colours(vendor).unwrap() {
                *told.entry(colour).or_default() += pixels;
            }
            assert_eq!(told, counted, "{} by {}", concept.name, vendor.name());
            let opacity = image.rgba.chunks_exact(4).map(|pixel| pixel[3]);
            let seen = opacity.filter(|&opacity| opacity > 128).count();
            assert!(
                seen > 64,
                "{} by {} shows {seen} pixels",
                concept.name,
                vendor.name()
            );
        }
        assert_ne!(
            concept.image(Vendor::Noto).unwrap(),
            concept.image(Vendor::Twemoji).unwrap()
        );
    }
}

#[test]
fn one_concept_in_ten_is_held_out_and_every_subcategory_can_be_learnt() {
    let concepts = &*CONCEPTS;
    let mut subcategories: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for concept in concepts {
        let (held_out, trained) = subcategories.entry(&concept.subcategory).or_default();
        *(if concept.held_out { held_out } else { trained }) += 1;
    }
    assert_eq!(subcategories.len(), 98);
    for (name, (held_out, trained)) in &subcategories {
        assert!(
            trained > held_out,
            "{name}: {held_out} held out, {trained} trained"
        );
        let all = held_out + trained;
        assert!(
            held_out * 10 <= all + 5 && held_out * 10 + 5 > all,
            "{name}: {held_out} of {all}"
        );
    }
    assert_eq!(
        concepts.iter().filter(|concept| concept.held_out).count(),
        197
    );
    let categories: BTreeSet<&str> = concepts.iter().map(|c| c.category.as_str()).collect();
    assert_eq!(categories.len(), 9);
}

#[test]
fn well_known_concepts_have_the_words_and_colours_a_person_expects() {
    let find = |name: &str| {
        CONCEPTS
            .iter()
            .find(|concept| concept.name == name)
            .unwrap()
    };
    let kenya = find("flag of kenya");
    assert_eq!(
        (kenya.emoji.as_str(), kenya.codepoints.as_str()),
        ("🇰🇪", "1f1f0-1f1ea")
    );
    assert_eq!(kenya.short_names, ["flag-ke"]);
    assert!(find("red apple").keywords.contains(&"fruit".to_owned()));
    for (name, channel) in [("red circle", 0), ("green circle", 1), ("blue circle", 2)] {
        for vendor in Vendor::ALL {
            let image = find(name).image(vendor).unwrap().flatten([255; 3]);
            let middle = &image.rgba[(32 * 64 + 32) * 4..][..3];
            let strongest = (0..3).max_by_key(|&c| middle[c]).unwrap();
            assert_eq!(
                strongest,
                channel,
                "{name} by {}: {middle:?}",
                vendor.name()
            );
        }
    }
}

#[test]
fn shards_that_are_damaged_or_do_not_belong_together_are_refused() {
    let text = EmbeddedConcepts::load(&NOTO[..NOTO.len() / 2], TWEMOJI)
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("the embedded shard noto: it cannot be unpacked"),
        "{text}"
    );
    let mut damaged = TWEMOJI.to_vec();
    damaged[TWEMOJI.len() / 2] ^= 1;
    assert!(EmbeddedConcepts::load(NOTO, &damaged).is_err());
}
