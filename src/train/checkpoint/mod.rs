//! Checkpoints: the file, how it reaches the disk, when a run writes one and which it keeps, and a file's model.

mod checkpointer;
mod copies;
mod disk;
mod file;
mod model;
mod optimizer_state;
mod origins;
mod saver;
mod shard;

pub(super) use checkpointer::{
    Averages, Checkpointer, after_stage, newest_valid, newest_well, restore, without_optimizer,
};
pub use disk::{Disk, LocalDisk, OpenFile, folder_inside, free_bytes, write_durably};
pub(super) use disk::{
    create_folders, create_inside, parent_of, remove_unfinished, uninterrupted, write_all,
    write_durably_on,
};
pub(super) use file::parameters;
pub use file::{Checkpoint, Position, Sink, Snapshot, load, read_position, save};
pub(super) use model::CheckpointModel;
pub(super) use optimizer_state::OptimizerValues;
pub(super) use origins::begin_stage;
pub use shard::ShardFile;
pub(super) use shard::{checkpoint_of_shard, remove_checkpoint};
