//! GIF files: the first frame, laid on the logical screen.

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{Decoded, Refusal, checked_pixels, still};
use crate::images::image::ImageLimits;

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, Refusal> {
    let layout = Layout::of(bytes)?;
    let [width, height] = layout.screen;
    let pixels = checked_pixels(width.into(), height.into(), limits)?;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // The screen holds the first frame, and its pixels are within the limit.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(Refusal::damaged)?;
    let frame = decoder
        .read_next_frame()
        .map_err(Refusal::damaged)?
        .ok_or_else(|| Refusal::damaged("it has no frame"))?;
    let [left, top, across, down] =
        [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    if frame.buffer.len() != across as usize * down as usize {
        return Err(Refusal::damaged("its first frame ends early"));
    }
    let transparent = frame.transparent;
    let (indices, own) = (frame.buffer.to_vec(), frame.palette.clone());
    let palette = own.or_else(|| decoder.global_palette().map(<[u8]>::to_vec));
    let colour = |index: u8| -> [u8; 4] {
        let opacity = if transparent == Some(index) { 0 } else { 255 };
        // Without any table of colours indices are greys; beyond its end they are black.
        let [r, g, b] = match &palette {
            None => [index; 3],
            Some(palette) => {
                let (colours, _) = palette.as_chunks::<3>();
                colours.get(usize::from(index)).copied().unwrap_or_default()
            }
        };
        [r, g, b, opacity]
    };
    // Around a frame that is smaller than the screen Pillow puts what is transparent, or the first colour.
    let mut rgba = colour(transparent.unwrap_or(0)).repeat(pixels);
    for (row, indices) in indices.chunks_exact(across.max(1) as usize).enumerate() {
        let start = ((top as usize + row) * width as usize + left as usize) * 4;
        let (targets, _) = rgba[start..start + 4 * indices.len()].as_chunks_mut::<4>();
        for (target, index) in targets.iter_mut().zip(indices) {
            *target = colour(*index);
        }
    }
    Ok(Decoded {
        is_animated: layout.frames > 1,
        ..still(width, height, rgba)
    })
}

/// What the blocks of a file say, before anything is decoded.
struct Layout {
    /// Width and height of the logical screen, grown to hold the first frame as Pillow grows it.
    screen: [u32; 2],
    frames: usize,
}

impl Layout {
    /// Walks over all blocks, so that a file that ends before its trailer is refused and frames are counted without decoding
    /// them (GIF89a, appendix B: the grammar of a file).
    fn of(bytes: &[u8]) -> Result<Layout, Refusal> {
        const EXTENSION: u8 = 0x21;
        const IMAGE: u8 = 0x2c;
        const TRAILER: u8 = 0x3b;
        let cut = || Refusal::damaged("it has no end");
        let mut rest = Blocks(bytes);
        let header = rest.take(13).ok_or_else(cut)?;
        let side =
            |at: &[u8], index: usize| u32::from(u16::from_le_bytes([at[index], at[index + 1]]));
        let mut screen = [side(header, 6), side(header, 8)];
        rest.table(header[10]).ok_or_else(cut)?;
        let mut frames = 0;
        loop {
            match rest.take(1).ok_or_else(cut)?[0] {
                EXTENSION => {
                    rest.take(1).ok_or_else(cut)?;
                }
                IMAGE => {
                    let place = rest.take(9).ok_or_else(cut)?;
                    if frames == 0 {
                        screen[0] = screen[0].max(side(place, 0) + side(place, 4));
                        screen[1] = screen[1].max(side(place, 2) + side(place, 6));
                    }
                    frames += 1;
                    rest.table(place[8]).ok_or_else(cut)?;
                    // The width of codes.
                    rest.take(1).ok_or_else(cut)?;
                }
                TRAILER => return Ok(Layout { screen, frames }),
                _ => return Err(Refusal::damaged("a block of it is of no known kind")),
            }
            // Both kinds of block end in sub-blocks, the last of them empty.
            loop {
                let size = rest.take(1).ok_or_else(cut)?[0];
                if size == 0 {
                    break;
                }
                rest.take(usize::from(size)).ok_or_else(cut)?;
            }
        }
    }
}

/// What is left of a file.
struct Blocks<'a>(&'a [u8]);

impl<'a> Blocks<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    /// Passes over the table of colours that these flags announce.
    fn table(&mut self, flags: u8) -> Option<()> {
        let size = if flags & 0x80 != 0 {
            3 << ((flags & 7) + 1)
        } else {
            0
        };
        self.take(size).map(|_| ())
    }
}
