//! The tasks of the emoji world.

use keel_data::task::Task;

/// An image of one concept and its name.
pub const SHORT_CAPTIONS: Task = Task {
    number: 0,
    name: "short_captions",
    has_images: true,
};

/// An image of one concept with its category, colours and keywords.
pub const DENSE_CAPTIONS: Task = Task {
    number: 1,
    name: "dense_captions",
    has_images: true,
};

/// Keys, letters, clocks, flags and arrows to read.
pub const OCR: Task = Task {
    number: 2,
    name: "ocr",
    has_images: true,
};

/// Composed scenes with questions and answers.
pub const VQA: Task = Task {
    number: 3,
    name: "vqa",
    has_images: true,
};

/// Text without an image.
pub const FACTS: Task = Task {
    number: 4,
    name: "facts",
    has_images: false,
};

/// The tasks of this world.
pub const EMOJI_TASKS: [Task; 5] = [SHORT_CAPTIONS, DENSE_CAPTIONS, OCR, VQA, FACTS];
