//! The optimiser's moments of a stage under way, in and out of a session.

use keel_base::error::Result;
use keel_engine::executor::Session;
use keel_engine::tape::Arena;

/// First and second moments in gradient-arena order.
pub(crate) type Moments = (Vec<f32>, Vec<f32>);

const MOMENTS: [Arena; 2] = [Arena::FirstMoments, Arena::SecondMoments];

/// Copies both out of a session.
///
/// # Errors
/// Whatever the session reports.
pub(crate) fn read_moments(session: &dyn Session) -> Result<Moments> {
    let [first, second] = MOMENTS;
    Ok((session.read_arena(first)?, session.read_arena(second)?))
}

/// Writes both into a session.
///
/// # Errors
/// Whatever the session reports.
pub(crate) fn write_moments(session: &mut dyn Session, moments: &Moments) -> Result<()> {
    let [first, second] = MOMENTS;
    session.write_arena(first, &moments.0)?;
    session.write_arena(second, &moments.1)
}

/// Makes both zero, as a stage begins with.
///
/// # Errors
/// Whatever the session reports.
pub(crate) fn clear_moments(session: &mut dyn Session) -> Result<()> {
    for arena in MOMENTS {
        let zeros = vec![0.0; session.read_arena(arena)?.len()];
        session.write_arena(arena, &zeros)?;
    }
    Ok(())
}
