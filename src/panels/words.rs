//! The words of this world. Each is one token of the embedded tokenizer where a space stands before it, which is how captions,
//! questions and answers write them: the token that a caption says is the token that an answer gives.

/// The shapes, in the order in which short captions name them.
pub const SHAPES: [&str; 12] = [
    " arrow", " button", " face", " flag", " hand", " heart", " key", " person", " picture",
    " sign", " stand", " v",
];

/// The colours.
pub const COLOURS: [&str; 8] = [
    " red", " orange", " yellow", " green", " blue", " purple", " pink", " brown",
];

/// The digits. They have no space before them: a space and a digit are two tokens, of which the second is this one.
pub const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// The rows of an image, from above.
pub const ROWS: [&str; 2] = [" top", " bottom"];

/// The columns of an image, from the left.
pub const COLUMNS: [&str; 2] = [" left", " right"];

/// How often a colour can occur.
pub const COUNTS: [&str; 5] = ["0", "1", "2", "3", "4"];
