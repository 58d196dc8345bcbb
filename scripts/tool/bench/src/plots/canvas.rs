//! The ground that every plot is drawn on: captions above, the legend at the right, and the colours and markers of the series.
//! The room for each is measured, so that nothing overlaps however long the texts are.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::section::{Section, Series};
use super::scale::label;
use super::{Captions, FAMILY};

/// The size of a plot, in units of the SVG.
const SIZE: (u32, u32) = (960, 560);
/// Heights of the fonts: title, captions, legend and axes.
const TITLE: u32 = 19;
const CAPTION: u32 = 13;
/// The height of a text of the legend and the axes.
pub const LABEL: u32 = 13;
/// The room between the border and the drawing.
const MARGIN: i32 = 14;
/// The room of a symbol of the legend.
const SYMBOL: i32 = 34;
/// The most of the width that the legend takes; longer labels take several lines.
const WIDEST_LEGEND: i32 = 270;
/// Colours that most people can tell apart: those of Okabe and Ito but for their yellow, and some of Tol's.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
    RGBColor(136, 34, 85),
    RGBColor(153, 153, 51),
    RGBColor(51, 34, 136),
];
/// The colour of captions and axes.
pub const INK: RGBColor = RGBColor(40, 40, 40);
/// The colour of the grid.
pub const GRID: RGBColor = RGBColor(222, 222, 222);

/// An area to draw on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the legend's symbol of a series at a place.
pub type Symbol = fn(&Area<'_>, (i32, i32), &Series) -> Result<(), String>;

/// The colour of the series with this index.
pub fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// Draws captions and legend around what `draw` draws on the rest; gives the SVG.
pub fn draw(
    section: &Section,
    title: &str,
    captions: &Captions,
    symbol: Symbol,
    draw: impl FnOnce(&Area<'_>) -> Result<(), String>,
) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(shown)?;
        let below = caption(&root, title, captions)?;
        let (_, rest) = root.split_vertically(below);
        let legend = Legend::of(&rest, section);
        let (left, right) = rest.split_horizontally(SIZE.0 as i32 - legend.width);
        legend.draw(&right, section, symbol)?;
        draw(&left)?;
        root.present().map_err(shown)?;
    }
    Ok(svg)
}

/// Draws the title and the subtitle; returns where they end.
fn caption(area: &Area<'_>, title: &str, captions: &Captions) -> Result<i32, String> {
    let mut top = MARGIN;
    let texts = [
        (title, TITLE),
        (captions.workload.as_str(), CAPTION),
        (captions.made.as_str(), CAPTION),
    ];
    for (text, height) in texts {
        for line in wrapped(area, text, height, SIZE.0 as i32 - 2 * MARGIN) {
            area.draw_text(&line, &font(height), (MARGIN, top))
                .map_err(shown)?;
            top += height as i32 * 7 / 5;
        }
    }
    Ok(top + MARGIN / 2)
}

/// The labels of the series, each in as many lines as it takes.
struct Legend {
    lines: Vec<Vec<String>>,
    width: i32,
}

impl Legend {
    fn of(area: &Area<'_>, section: &Section) -> Self {
        let most = WIDEST_LEGEND - SYMBOL - 2 * MARGIN;
        let labels = section.series.iter().map(|series| series.label.as_str());
        let lines: Vec<Vec<String>> = labels
            .map(|label| wrapped(area, label, LABEL, most))
            .collect();
        let widths = lines.iter().flatten().map(|line| width(area, line, LABEL));
        Self {
            width: widths.max().unwrap_or(0) + SYMBOL + 2 * MARGIN,
            lines,
        }
    }

    fn draw(&self, area: &Area<'_>, section: &Section, symbol: Symbol) -> Result<(), String> {
        let line_height = LABEL as i32 * 13 / 10;
        let mut top = MARGIN;
        for (lines, series) in self.lines.iter().zip(&section.series) {
            symbol(area, (0, top + LABEL as i32 / 2), series)?;
            for line in lines {
                area.draw_text(line, &font(LABEL), (SYMBOL, top))
                    .map_err(shown)?;
                top += line_height;
            }
            top += line_height / 3;
        }
        Ok(())
    }
}

/// A text style of this height.
pub fn font(height: u32) -> TextStyle<'static> {
    let style = TextStyle::from((FAMILY, height).into_font());
    style.color(&INK).pos(Pos::new(HPos::Left, VPos::Top))
}

/// How wide a text is.
pub fn width(area: &Area<'_>, text: &str, height: u32) -> i32 {
    let size = area.estimate_text_size(text, &font(height));
    size.map_or(0, |(width, _)| i32::try_from(width).unwrap_or(i32::MAX))
}

/// The room at the left for the marks and the caption of an axis.
pub fn axis_width(area: &Area<'_>, marks: &[f64]) -> i32 {
    let widths = marks.iter().map(|mark| width(area, &label(*mark), LABEL));
    widths.max().unwrap_or(0) + 3 * LABEL as i32
}

/// Cuts a text at its spaces into lines that aren't wider than `most`, if its words allow that.
fn wrapped(area: &Area<'_>, text: &str, height: u32, most: i32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(area, &format!("{line} {word}"), height) <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// An error of the library in words.
pub fn shown(error: impl std::fmt::Display) -> String {
    error.to_string()
}
