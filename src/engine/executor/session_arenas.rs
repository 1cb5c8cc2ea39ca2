//! The fixed arenas of one session, in whatever memory its executor has.

use crate::program::Program;
use crate::tape::Arena;
use keel_base::error::Result;

/// All fixed arenas of a program but those of the parameters, which sessions share.
#[derive(Clone, Debug)]
pub(super) struct SessionArenas<T>(Vec<(Arena, T)>);

impl<T> SessionArenas<T> {
    /// Those of `program`. `make` is told what an arena holds, its name and its number of elements.
    ///
    /// # Errors
    /// What `make` reports.
    pub fn new(
        program: &Program,
        mut make: impl FnMut(&'static str, Arena, usize) -> Result<T>,
    ) -> Result<SessionArenas<T>> {
        let arenas = program.session_arenas().map(|(what, arena)| {
            let memory = make(what, arena, program.arena_elements(arena, 0))?;
            Ok((arena, memory))
        });
        Ok(SessionArenas(arenas.collect::<Result<_>>()?))
    }

    /// An arena that the program declares.
    pub fn get(&self, arena: Arena) -> &T {
        let found = self.0.iter().find(|(known, _)| *known == arena);
        &found.expect(DECLARED).1
    }

    /// An arena that the program declares, to write.
    pub fn get_mut(&mut self, arena: Arena) -> &mut T {
        let found = self.0.iter_mut().find(|(known, _)| *known == arena);
        &mut found.expect(DECLARED).1
    }
}

const DECLARED: &str = "the program declares what it uses";
