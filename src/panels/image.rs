//! How a scene is drawn: in a style that is trained on, or in one that never is.

use std::any::Any;
use std::sync::Arc;

use super::scene::{Scene, column, row};
use super::stencils::{DOTS, Stencils};
use keel_base::random::Stream;
use keel_data::frame::{Drawing, Frame, Tint};
use keel_data::sample::View;

/// The colours of [`COLOURS`](super::words::COLOURS), in their order.
pub const PALETTE: [[u8; 3]; 8] = [
    [215, 40, 40],
    [245, 140, 30],
    [230, 200, 20],
    [40, 160, 70],
    [45, 90, 215],
    [130, 60, 180],
    [245, 140, 190],
    [125, 75, 35],
];

/// A style of drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    /// A light background, light digits, a little noise: trained on.
    Light,
    /// A dark background, dark digits, twice the shift and more noise: never trained on.
    Dark,
}

impl Style {
    /// The name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Style::Light => "panels",
            Style::Dark => "dark panels",
        }
    }

    /// The colour of digits.
    pub fn ink(self) -> [u8; 3] {
        match self {
            Style::Light => [252; 3],
            Style::Dark => [10; 3],
        }
    }

    /// The least and the largest value of a background's channels.
    fn background(self) -> [f32; 2] {
        match self {
            Style::Light => [185.0, 222.0],
            Style::Dark => [20.0, 60.0],
        }
    }

    /// How much of the room around them shapes are shifted by.
    fn reach(self) -> f32 {
        match self {
            Style::Light => 0.5,
            Style::Dark => 1.0,
        }
    }

    /// The largest noise, of 0..255.
    fn noise(self) -> f32 {
        match self {
            Style::Light => 10.0,
            Style::Dark => 24.0,
        }
    }
}

/// What of an image is not told: its style and what varies in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// The style.
    pub style: Style,
    /// The colour behind the shapes.
    pub background: [u8; 3],
    /// Each panel's shift in x and y, as a place between the least at 0 and the most at 1.
    shifts: [[f32; 2]; 4],
    /// How much of the style's shift and noise there is, 0 to 1.
    strength: f32,
    noise_seed: u64,
}

impl Look {
    /// A look of `style`. At a `strength` of 0 nothing is shifted, the background is plain and there is no noise.
    pub fn draw(style: Style, strength: f32, stream: &mut Stream) -> Look {
        let [least, most] = style.background();
        let middle = 0.5 * (least + most);
        let mut channel = || middle + strength * (stream.between(least, most) - middle);
        let background = [channel(), channel(), channel()].map(|value| value.round() as u8);
        Look {
            style,
            background,
            shifts: [(); 4].map(|()| [stream.unit(), stream.unit()]),
            strength,
            noise_seed: stream.bits(),
        }
    }

    /// An image of `scene` as a sample shows it.
    pub fn view(self, scene: Scene) -> View {
        View::Drawn(Arc::new(PanelsImage { scene, look: self }))
    }
}

/// A scene and how it is drawn. An image of any size can be made of it, the same one every time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanelsImage {
    /// What it shows.
    pub scene: Scene,
    /// How it shows that.
    pub look: Look,
}

impl PanelsImage {
    /// The image that a view shows; nothing where it shows none.
    pub fn of(view: &View) -> Option<&PanelsImage> {
        let View::Drawn(drawing) = view else {
            return None;
        };
        let drawing: &dyn Any = drawing.as_ref();
        drawing.downcast_ref::<PanelsImage>()
    }

    /// How far the shape at a place is shifted, in pixels, where it can be shifted by `room`.
    fn shift(&self, place: usize, room: usize) -> [isize; 2] {
        let reach = (room as f32 * self.look.style.reach() * self.look.strength).floor();
        self.look.shifts[place]
            .map(|at| (at * (2.0 * reach + 1.0)).floor() as isize - reach as isize)
    }

    fn draw_panel(&self, place: usize, panel_side: usize, frame: &mut Frame) {
        let panel = self.scene.panels[place];
        let stencils = Stencils::of(panel_side);
        let corner = [column(place), row(place)].map(|at| at * panel_side + stencils.room);
        let shift = self.shift(place, stencils.room);
        let [left, top] = [0, 1].map(|axis| corner[axis].saturating_add_signed(shift[axis]));
        let (side, width) = (stencils.side, frame.side());
        let colour = PALETTE[panel.colour].map(f32::from);
        let ink = self.look.style.ink().map(f32::from);
        let shape = stencils.shape(panel.shape);
        let pixels = frame.pixels_mut();
        for y in 0..side {
            for x in 0..side {
                let share = shape[y * side + x];
                let pixel = &mut pixels[(top + y) * width + left + x];
                for channel in 0..3 {
                    pixel[channel] += share * (colour[channel] - pixel[channel]);
                }
            }
        }
        let digit = stencils.digit_corner(panel.shape);
        let dots = DOTS.map(|dots| dots * stencils.dot);
        for y in 0..dots[1] {
            for x in 0..dots[0] {
                let [at_x, at_y] = [digit[0] + x, digit[1] + y];
                let is_on_shape = at_x < side && at_y < side;
                if is_on_shape && stencils.has_ink(panel.digit, [x, y]) {
                    let pixel = &mut pixels[(top + at_y) * width + left + at_x];
                    pixel[..3].copy_from_slice(&ink);
                }
            }
        }
    }

    /// Adds noise to every channel, evenly spread.
    fn add_noise(&self, frame: &mut Frame) {
        let most = self.look.style.noise() * self.look.strength;
        if most == 0.0 {
            return;
        }
        let mut stream = Stream::of_seed(self.look.noise_seed);
        let mut channels = frame
            .pixels_mut()
            .iter_mut()
            .flat_map(|pixel| &mut pixel[..3]);
        loop {
            // Eight channels of one number: a byte each is fine enough.
            for byte in stream.bits().to_le_bytes() {
                let Some(channel) = channels.next() else {
                    return;
                };
                *channel += most * (f32::from(byte) / 127.5 - 1.0);
            }
        }
    }
}

impl Drawing for PanelsImage {
    fn draw(&self, side: usize, out: &mut [f32]) {
        let mut frame = Frame::new(side, self.look.background);
        for place in 0..self.scene.panels.len() {
            self.draw_panel(place, side / 2, &mut frame);
        }
        self.add_noise(&mut frame);
        frame.write_normalised(Tint::NONE, out);
    }
}
