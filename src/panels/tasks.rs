//! The tasks of the panels world.

use keel_data::task::Task;

/// An image of panels and the names of its shapes, without colours, places and digits.
pub const PANELS_SHORT: Task = Task {
    number: 6,
    name: "panels_short",
    has_images: true,
};

/// An image of panels and everything about it: place, colour, shape and digit of each panel.
pub const PANELS_DENSE: Task = Task {
    number: 7,
    name: "panels_dense",
    has_images: true,
};

/// An image of panels with questions that have answers of one word.
pub const PANELS_QUESTIONS: Task = Task {
    number: 8,
    name: "panels_questions",
    has_images: true,
};

/// The facts of panels as text, without an image, with questions or to be said in order. Only answers are learnt.
pub const PANELS_FACTS: Task = Task {
    number: 9,
    name: "panels_facts",
    has_images: false,
};

/// The tasks of this world.
pub const PANELS_TASKS: [Task; 4] = [PANELS_SHORT, PANELS_DENSE, PANELS_QUESTIONS, PANELS_FACTS];
