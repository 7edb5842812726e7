//! What the pages of this program have in common: colours, shapes, and the drawing of strips and wipes. A page puts its
//! own styles and script behind these. Nothing is built, and nothing is loaded from elsewhere.

/// Colours, light and dark. Plots in files of their own use them too.
pub const PALETTE: &str = include_str!("palette.css");
/// Of drawings, beside the palette.
pub const PLOT: &str = include_str!("plot.css");
/// Type, cards, controls, and the frame of a wipe.
pub const BASICS: &str = include_str!("basics.css");
/// `element`, `drawing`, `number`, `percent`, `drawStrip` and `blend`: a script that comes before a page's own.
pub const PARTS: &str = include_str!("parts.js");
