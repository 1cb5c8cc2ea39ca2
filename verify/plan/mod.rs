//! The memory planner: bounds, placements, their verifier, recompute, reports.

mod instances;
mod oracle;
mod placement;
