//! Images: decoded without trusting them, scaled as published processors do, cut, varied, spoilt for tests, and turned
//! into a tower's numbers.

pub mod augment;
pub(crate) mod catch_decoder_panic;
pub mod corruption;
pub(crate) mod decode;
pub mod frame;
pub mod image;
pub mod image_view;
pub mod pixels;
pub mod prepare;
pub mod resample;
pub mod tiles;
