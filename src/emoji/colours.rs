//! Names for colours and the dominant colours of an image, measured from its pixels. An image's colours are never read
//! from its name, so they hold for any vendor's drawing. Names are decided in OKLab (Ottosson 2020), where equal
//! distances look equal; the borders between names are this project's choice.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// The colours that captions and answers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
    Black,
    Grey,
    White,
}

impl Colour {
    /// All colours, in the order of their declaration.
    pub const ALL: [Colour; 11] = [
        Colour::Red,
        Colour::Orange,
        Colour::Yellow,
        Colour::Green,
        Colour::Blue,
        Colour::Purple,
        Colour::Pink,
        Colour::Brown,
        Colour::Black,
        Colour::Grey,
        Colour::White,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Orange => "orange",
            Colour::Yellow => "yellow",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Purple => "purple",
            Colour::Pink => "pink",
            Colour::Brown => "brown",
            Colour::Black => "black",
            Colour::Grey => "grey",
            Colour::White => "white",
        }
    }

    /// A typical sRGB value of it, used for backgrounds; [`Colour::of`] gives the colour back.
    pub fn sample(self) -> [u8; 3] {
        match self {
            Colour::Red => [214, 40, 40],
            Colour::Orange => [244, 132, 28],
            Colour::Yellow => [250, 214, 60],
            Colour::Green => [70, 160, 70],
            Colour::Blue => [50, 110, 210],
            Colour::Purple => [130, 70, 180],
            Colour::Pink => [244, 150, 190],
            Colour::Brown => [120, 76, 44],
            Colour::Black => [24, 24, 26],
            Colour::Grey => [134, 136, 138],
            Colour::White => [246, 246, 246],
        }
    }

    /// The name of an sRGB value, through a table of 32 levels a channel.
    pub fn of(rgb: [u8; 3]) -> Colour {
        table()[cell(rgb)]
    }
}

/// The names of all cells of the colour cube.
fn table() -> &'static [Colour] {
    static TABLE: OnceLock<Vec<Colour>> = OnceLock::new();
    TABLE.get_or_init(|| {
        // Five bits a channel: 32,768 names made once, where naming each pixel would take a cube root for each of its
        // channels.
        (0..1usize << 15)
            .map(|cell| {
                let level = |shift: usize| (((cell >> shift) & 31) as f32 + 0.5) / 32.0;
                name_of_oklab(oklab([level(10), level(5), level(0)]))
            })
            .collect()
    })
}

/// Where a colour stands in [`table`]: 32 levels a channel.
fn cell([r, g, b]: [u8; 3]) -> usize {
    let level = |channel: u8| usize::from(channel >> 3);
    (level(r) << 10) | (level(g) << 5) | level(b)
}

/// OKLab (lightness 0..1, green–red, blue–yellow) of sRGB in 0..1.
fn oklab(rgb: [f32; 3]) -> [f32; 3] {
    let [r, g, b] = rgb.map(|c| {
        if c <= 0.04045 {
            c / 12.92
        } else {
            ((c + 0.055) / 1.055).powf(2.4)
        }
    });
    let l = (0.412_221_46 * r + 0.536_332_55 * g + 0.051_445_995 * b).cbrt();
    let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
    let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
    [
        0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s,
        1.977_998_5 * l - 2.428_592_2 * m + 0.450_593_7 * s,
        0.025_904_037 * l + 0.782_771_77 * m - 0.808_675_77 * s,
    ]
}

fn name_of_oklab([lightness, a, b]: [f32; 3]) -> Colour {
    let chroma = a.hypot(b);
    // Chroma is less visible in the dark, and what prints as black is rarely exactly so.
    let grey_below = if lightness < 0.4 { 0.035 } else { 0.045 };
    if chroma < grey_below {
        return match lightness {
            l if l < 0.46 => Colour::Black,
            l if l < 0.90 => Colour::Grey,
            _ => Colour::White,
        };
    }
    if lightness < 0.22 {
        return Colour::Black;
    }
    let hue = b.atan2(a).to_degrees().rem_euclid(360.0);
    match hue {
        h if h < 22.0 && lightness > 0.66 => Colour::Pink,
        h if h < 38.0 => {
            if lightness > 0.74 {
                Colour::Pink
            } else if chroma < 0.10 {
                Colour::Brown
            } else {
                Colour::Red
            }
        }
        h if h < 80.0 => {
            if lightness > 0.75 && chroma < 0.075 {
                Colour::Pink
            } else if lightness < 0.66 || chroma < 0.075 {
                Colour::Brown
            } else {
                Colour::Orange
            }
        }
        h if h < 112.0 => {
            if lightness < 0.55 {
                Colour::Brown
            } else {
                Colour::Yellow
            }
        }
        h if h < 180.0 => Colour::Green,
        h if h < 285.0 => Colour::Blue,
        h if h < 328.0 => Colour::Purple,
        _ => {
            if lightness > 0.6 {
                Colour::Pink
            } else if hue < 350.0 {
                Colour::Purple
            } else {
                Colour::Red
            }
        }
    }
}

/// How much of an image each colour covers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Palette {
    shares: [f32; 11],
}

impl Palette {
    /// Measures straight (not premultiplied) sRGB colours with alpha, each with the number of pixels that have it; every
    /// pixel counts by its alpha. An image without any opaque pixel has all shares zero.
    pub fn measure(colours: impl IntoIterator<Item = ([u8; 4], u64)>) -> Palette {
        let mut sums = [0u64; 11];
        let table = table();
        for ([r, g, b, alpha], pixels) in colours {
            sums[table[cell([r, g, b])] as usize] += u64::from(alpha) * pixels;
        }
        let total: u64 = sums.iter().sum();
        Palette {
            shares: sums.map(|sum| sum as f32 / total.max(1) as f32),
        }
    }

    /// The share of `colour`, 0..1.
    pub fn share(&self, colour: Colour) -> f32 {
        self.shares[colour as usize]
    }

    /// The colours that cover at least `least` of the image, largest first, at most `most` of them.
    pub fn dominant(&self, least: f32, most: usize) -> Vec<Colour> {
        let mut found: Vec<Colour> = Colour::ALL
            .into_iter()
            .filter(|&colour| self.share(colour) >= least)
            .collect();
        found.sort_by(|&x, &y| self.share(y).total_cmp(&self.share(x)).then(x.cmp(&y)));
        found.truncate(most);
        found
    }

    /// The one colour of an image that has one: it covers at least 60 % and no other more than 20 %.
    pub fn single(&self) -> Option<Colour> {
        match self.dominant(0.2, 2)[..] {
            [only] if self.share(only) >= 0.6 => Some(only),
            _ => None,
        }
    }
}
