//! What the tokens of a sequence show where images take slots: as tiles beside the whole image, or as several of them.

/// What a token shows.
pub mod place {
    /// Nothing.
    pub const NONE: i32 = 0;
    /// A part of a tile.
    pub const TILE: i32 = 1;
    /// A part of a whole image.
    pub const WHOLE: i32 = 2;
}

/// Marks a sample's image tokens: those of its `tiles` tiles, and after them those of the whole image, where `ids` holds
/// the token that stands for one.
pub fn mark_places(
    ids: &[i32],
    image_id: i32,
    (tiles, image_tokens): (usize, usize),
    places: &mut [i32],
) {
    let of_tiles = tiles * image_tokens;
    let images = ids.iter().zip(places).filter(|(id, _)| **id == image_id);
    for (count, (_, place)) in images.enumerate() {
        *place = if count < of_tiles {
            place::TILE
        } else {
            place::WHOLE
        };
    }
}
