//! Reduces a small image with transparency to a palette and writes it as the smallest PNG it finds.
//!
//! The palette is grown by splitting the worst cluster and settled by k-means (Lloyd 1982), in colours premultiplied by
//! their opacity, so that what nobody sees costs nothing. No dithering: noise would cost more bytes than it hides.

use std::io::Write;

/// Palettes tried, smallest first.
const PALETTE_SIZES: [usize; 7] = [8, 16, 24, 32, 48, 64, 96];

/// Lloyd iterations after each growth.
const ITERATIONS: usize = 8;

/// Opacity counts this much more than one colour channel: an error in it shows in all three.
const OPACITY_WEIGHT: f64 = 1.75;

/// An image as indices into at most 96 colours.
pub struct Reduced {
    /// Straight (not premultiplied) RGBA, translucent colours first.
    pub colours: Vec<[u8; 4]>,
    /// One per pixel, rows from the top.
    pub indices: Vec<u8>,
    /// Peak signal-to-noise ratio against the original, premultiplied channels, decibels.
    pub psnr: f64,
}

type Point = [f64; 4];

/// The fewest colours of `PALETTE_SIZES` that reach `wanted_psnr`, or the most there are.
pub fn reduce(pixels: &[[u8; 4]], wanted_psnr: f64) -> Reduced {
    let points: Vec<Point> = pixels.iter().map(premultiply).collect();
    let mut centres = vec![mean(points.iter())];
    let mut best = settle(&points, &mut centres);
    for &size in &PALETTE_SIZES {
        while centres.len() < size {
            if !split_worst(&points, &best, &mut centres) {
                break;
            }
            best = assign(&points, &centres);
        }
        best = settle(&points, &mut centres);
        let reduced = finish(&points, &best, &centres);
        if reduced.psnr >= wanted_psnr || centres.len() < size {
            return reduced;
        }
    }
    finish(&points, &best, &centres)
}

/// Channels times opacity, and weighted opacity, all of 0..=255.
fn premultiply(pixel: &[u8; 4]) -> Point {
    let opacity = f64::from(pixel[3]) / 255.0;
    [
        f64::from(pixel[0]) * opacity,
        f64::from(pixel[1]) * opacity,
        f64::from(pixel[2]) * opacity,
        f64::from(pixel[3]) * OPACITY_WEIGHT,
    ]
}

fn straight(point: &Point) -> [u8; 4] {
    let opacity = (point[3] / OPACITY_WEIGHT).round().clamp(0.0, 255.0);
    if opacity == 0.0 {
        return [0; 4];
    }
    let channel = |value: f64| (value * 255.0 / opacity).round().clamp(0.0, 255.0) as u8;
    [
        channel(point[0]),
        channel(point[1]),
        channel(point[2]),
        opacity as u8,
    ]
}

fn distance(a: &Point, b: &Point) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

fn mean<'a>(points: impl Iterator<Item = &'a Point>) -> Point {
    let (mut sum, mut count) = ([0.0; 4], 0.0);
    for point in points {
        sum.iter_mut()
            .zip(point)
            .for_each(|(sum, value)| *sum += value);
        count += 1.0;
    }
    sum.map(|value| value / f64::max(count, 1.0))
}

/// The nearest centre of every point, the lower index on a tie.
fn assign(points: &[Point], centres: &[Point]) -> Vec<usize> {
    points
        .iter()
        .map(|point| {
            let mut best = (f64::INFINITY, 0);
            for (index, centre) in centres.iter().enumerate() {
                let distance = distance(point, centre);
                if distance < best.0 {
                    best = (distance, index);
                }
            }
            best.1
        })
        .collect()
}

fn settle(points: &[Point], centres: &mut [Point]) -> Vec<usize> {
    let mut nearest = assign(points, centres);
    for _ in 0..ITERATIONS {
        for (index, centre) in centres.iter_mut().enumerate() {
            if nearest.contains(&index) {
                let members = points.iter().zip(&nearest).filter(|&(_, &n)| n == index);
                *centre = mean(members.map(|(point, _)| point));
            }
        }
        let next = assign(points, centres);
        if next == nearest {
            break;
        }
        nearest = next;
    }
    nearest
}

/// Cuts the cluster with the largest summed error at its mean along its widest channel; false when nothing is left.
fn split_worst(points: &[Point], nearest: &[usize], centres: &mut Vec<Point>) -> bool {
    let mut errors = vec![0.0; centres.len()];
    for (point, &index) in points.iter().zip(nearest) {
        errors[index] += distance(point, &centres[index]);
    }
    let worst = (0..centres.len()).fold(0, |a, b| if errors[b] > errors[a] { b } else { a });
    if errors[worst] < 1.0 {
        return false;
    }
    let members: Vec<&Point> = points
        .iter()
        .zip(nearest)
        .filter(|&(_, &n)| n == worst)
        .map(|(point, _)| point)
        .collect();
    let middle = mean(members.iter().copied());
    let spread = |channel: usize| -> f64 {
        members
            .iter()
            .map(|point| (point[channel] - middle[channel]).powi(2))
            .sum()
    };
    let widest = (1..4).fold(0, |a, b| if spread(b) > spread(a) { b } else { a });
    let (low, high): (Vec<&Point>, Vec<&Point>) = members
        .into_iter()
        .partition(|point| point[widest] < middle[widest]);
    if low.is_empty() || high.is_empty() {
        return false;
    }
    centres[worst] = mean(low.into_iter());
    centres.push(mean(high.into_iter()));
    true
}

/// Rounds the centres to colours, drops the unused, orders them, and measures what was lost.
fn finish(points: &[Point], nearest: &[usize], centres: &[Point]) -> Reduced {
    let rounded: Vec<[u8; 4]> = centres.iter().map(straight).collect();
    let mut colours: Vec<[u8; 4]> = nearest.iter().map(|&index| rounded[index]).collect();
    // Translucent first keeps the transparency table short; by brightness keeps neighbours' indices close.
    colours.sort_by_key(|&[r, g, b, a]| {
        (
            a == 255,
            2 * u32::from(r) + 4 * u32::from(g) + u32::from(b),
            [r, g, b, a],
        )
    });
    colours.dedup();
    let place = |colour: &[u8; 4]| {
        colours
            .iter()
            .position(|other| other == colour)
            .expect("collected from the same list") as u8
    };
    let places: Vec<u8> = rounded
        .iter()
        .enumerate()
        .map(|(index, colour)| {
            if nearest.contains(&index) {
                place(colour)
            } else {
                0
            }
        })
        .collect();
    let indices: Vec<u8> = nearest.iter().map(|&index| places[index]).collect();
    let squares: f64 = points
        .iter()
        .zip(&indices)
        .map(|(point, &index)| distance(point, &premultiply(&colours[usize::from(index)])))
        .sum();
    let mean_square = squares / (4 * points.len()) as f64;
    Reduced {
        colours,
        indices,
        psnr: 10.0 * (255.0 * 255.0 / mean_square).log10(),
    }
}

/// The image as a palette PNG of `size` × `size`, with the row filter that packs best.
pub fn encode(image: &Reduced, size: u32) -> Vec<u8> {
    let depth: u8 = match image.colours.len() {
        0..=2 => 1,
        3..=4 => 2,
        5..=16 => 4,
        _ => 8,
    };
    let per_byte = usize::from(8 / depth);
    let rows: Vec<Vec<u8>> = image
        .indices
        .chunks(size as usize)
        .map(|row| {
            row.chunks(per_byte)
                .map(|group| {
                    (0..per_byte).fold(0, |byte, place| {
                        (u16::from(byte) << depth) as u8 | group.get(place).copied().unwrap_or(0)
                    })
                })
                .collect()
        })
        .collect();
    let data = (0..4)
        .map(|filter| deflate(&filtered(&rows, filter)))
        .min_by_key(Vec::len)
        .expect("four filters are tried");

    let mut header = Vec::new();
    header.extend_from_slice(&size.to_be_bytes());
    header.extend_from_slice(&size.to_be_bytes());
    // Palette colour, deflate, per-row filters, no interlacing.
    header.extend_from_slice(&[depth, 3, 0, 0, 0]);
    let palette: Vec<u8> = image
        .colours
        .iter()
        .flat_map(|c| [c[0], c[1], c[2]])
        .collect();
    let opacity: Vec<u8> = image
        .colours
        .iter()
        .map(|c| c[3])
        .take_while(|&opacity| opacity != 255)
        .collect();

    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut file, b"IHDR", &header);
    chunk(&mut file, b"PLTE", &palette);
    if !opacity.is_empty() {
        chunk(&mut file, b"tRNS", &opacity);
    }
    chunk(&mut file, b"IDAT", &data);
    chunk(&mut file, b"IEND", &[]);
    file
}

/// The rows under one PNG filter: 0 none, 1 left, 2 above, 3 average of both.
fn filtered(rows: &[Vec<u8>], filter: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (y, row) in rows.iter().enumerate() {
        bytes.push(filter);
        for (x, &value) in row.iter().enumerate() {
            let left = if x > 0 { row[x - 1] } else { 0 };
            let above = if y > 0 { rows[y - 1][x] } else { 0 };
            bytes.push(value.wrapping_sub(match filter {
                0 => 0,
                1 => left,
                2 => above,
                _ => ((u16::from(left) + u16::from(above)) / 2) as u8,
            }));
        }
    }
    bytes
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("a vector takes every byte");
    encoder.finish().expect("a vector takes every byte")
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    file.extend_from_slice(kind);
    file.extend_from_slice(data);
    file.extend_from_slice(&crc.sum().to_be_bytes());
}
