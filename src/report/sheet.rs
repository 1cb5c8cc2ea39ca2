//! Contact sheets: the images of a batch side by side as one PNG, to look at what a model is trained on.

use keel_base::error::{Error, Result};

/// Pixels between images.
const GAP: usize = 4;

/// Bytes of the largest sheet before it is encoded; viewers give up long before.
const MOST_BYTES: usize = 1 << 30;

/// Lays out normalised images `[N, 3, side, side]` (values −1..1) in rows of `columns`, each pixel `zoom` times as wide
/// and high, and encodes the sheet as PNG.
///
/// # Errors
/// `Content` when there is nothing to lay out.
pub fn contact_sheet(images: &[f32], side: usize, columns: usize, zoom: usize) -> Result<Vec<u8>> {
    let image = 3 * side * side;
    let count = images.len().checked_div(image).unwrap_or(0);
    if count == 0 || columns == 0 || zoom == 0 {
        return Err(Error::content(
            "the contact sheet",
            "it has no images",
            "choose a task with images and a count above 0",
        ));
    }
    let columns = columns.min(count);
    let size = |cells: usize| cells.checked_mul(side.checked_mul(zoom)?.checked_add(GAP)?);
    let sizes = size(columns).zip(size(count.div_ceil(columns)));
    let bytes = sizes.and_then(|(width, height)| width.checked_mul(height)?.checked_mul(3));
    let (Some((width, height)), Some(bytes)) = (sizes, bytes.filter(|bytes| *bytes <= MOST_BYTES))
    else {
        return Err(Error::content(
            "the contact sheet",
            format!("it would take more than {MOST_BYTES} bytes"),
            "choose fewer images or a smaller zoom",
        ));
    };
    let cell = side * zoom + GAP;
    let mut rgb = vec![255u8; bytes];
    for (index, image) in images.chunks_exact(image).enumerate() {
        let (left, top) = ((index % columns) * cell, (index / columns) * cell);
        for y in 0..side * zoom {
            for x in 0..side * zoom {
                let from = (y / zoom) * side + x / zoom;
                let to = ((top + y) * width + left + x) * 3;
                for channel in 0..3 {
                    let value = (image[channel * side * side + from] + 1.0) * 127.5;
                    rgb[to + channel] = value.round().clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    encode_rgb(width, height, &rgb)
}

/// An image of bytes `[height, width, 3]` as PNG.
///
/// # Errors
/// `Content` when it cannot be encoded.
pub(super) fn encode_rgb(width: usize, height: usize, rgb: &[u8]) -> Result<Vec<u8>> {
    let unencodable = |problem: png::EncodingError| {
        Error::content("an image", problem, "choose fewer or smaller images")
    };
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(unencodable)?;
    writer.write_image_data(rgb).map_err(unencodable)?;
    writer.finish().map_err(unencodable)?;
    Ok(file)
}
