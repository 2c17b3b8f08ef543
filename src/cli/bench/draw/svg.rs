//! As much of SVG as the pictures need. Colours are fixed and there is a ground, so that they can be read on dark pages, too.

use std::fmt::Write;

/// Tidings.
pub const OURS: &str = "#1f6feb";
/// The control.
pub const CONTROL: &str = "#8b949e";
/// A bar that is missed.
pub const MISSED: &str = "#cf222e";
/// Text and axes.
pub const INK: &str = "#24292f";
/// Lines behind it all.
pub const GRID: &str = "#d0d7de";

/// A picture.
pub struct Svg {
    text: String,
}

impl Svg {
    /// An empty one, in pixels.
    pub fn new(width: f64, height: f64) -> Svg {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        Svg { text }
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        self.text.write_fmt(element).and_then(|()| self.text.write_char('\n')).expect("a string takes everything");
    }

    /// A line.
    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], colour: &str, width: f64) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        ));
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, [x, y]: [f64; 2], [width, height]: [f64; 2], colour: &str) {
        self.add(format_args!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"));
    }

    /// Points, and a line through them.
    pub fn curve(&mut self, points: &[[f64; 2]], colour: &str) {
        let path: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" ")));
        for [x, y] in points {
            self.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
        }
    }

    /// Text that begins, is centred on, or ends at a place: `start`, `middle`, `end`.
    pub fn words(&mut self, [x, y]: [f64; 2], anchor: &str, colour: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"));
    }

    /// The file.
    pub fn finish(self) -> String {
        self.text + "</svg>\n"
    }
}
