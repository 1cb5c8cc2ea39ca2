//! Training data: what users bring, read without trusting any of it, and the way from samples to batches.
//!
//! Five rooms, each a trade of its own; imports go from the later ones to the earlier ones and never back. From outside,
//! their files are reached by name alone: `data::image`, `data::mixture`.
//!
//! Nothing here starts a process. Connections are opened to the addresses that the user names as data, and files are written in the
//! folder of caches alone: the indexes of remote shards.
#![deny(unsafe_code)]

mod batching;
mod evaluation;
mod formats;
mod images;
mod text;

pub use batching::{
    assemble, batch, held_out, identities, image_slots, mixture, packing, prefetch, sample, source,
    task, user_samples,
};
pub use evaluation::{batches, blind_baseline, eval_set};
pub use formats::{
    archive, benchmark, census, digest, pairs, records, skips, split, sums, webdataset,
};
pub use images::{augment, corruption, frame, image, image_view, pixels, prepare, resample, tiles};
pub use text::{chat, tokenizer};
