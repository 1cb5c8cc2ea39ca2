//! The chores that tests run too.

pub mod reference;
