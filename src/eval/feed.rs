//! Hands a batch to a loaded program: each array goes to the input of its name, where the program has it.

use keel_base::error::Result;
use keel_data::batch::Batch;
use keel_engine::executor::Session;

/// Writes the inputs that the program has; those it does not have are left out.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] when an array does not fit the program's shapes.
pub fn write_batch(session: &mut dyn Session, batch: &Batch) -> Result<()> {
    let floats: [(&str, &[f32]); 3] = [
        ("images", &batch.images),
        ("weights", &batch.weights),
        ("caption_weights", &batch.caption_weights),
    ];
    for (name, values) in floats {
        if session.program().input(name).is_ok() {
            session.write_f32(name, values)?;
        }
    }
    let integers: [(&str, &[i32]); 8] = [
        ("tokens", &batch.tokens),
        ("targets", &batch.targets),
        ("segments", &batch.segments),
        ("positions", &batch.positions),
        ("places", &batch.places),
        ("caption_tokens", &batch.caption_tokens),
        ("caption_end", &batch.caption_end),
        ("pairs", &[batch.pairs as i32]),
    ];
    for (name, values) in integers {
        if session.program().input(name).is_ok() {
            session.write_i32(name, values)?;
        }
    }
    Ok(())
}
