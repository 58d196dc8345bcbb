//! Bars side by side: the time of each phase, and exits per page; each with the fewest and with the most vCPUs that were
//! measured, in two panels.

use plotters::prelude::*;

use super::super::metric::Metric;
use super::super::section::{Section, Series};
use super::super::statistics::Spread;
use super::super::table::{Unit, counted};
use super::Captions;
use super::canvas::{self, Area, GRID, INK, LABEL, colour, font, shown};
use super::scale::{Scale, even_marks, label};

/// Metrics that have a bar each, side by side.
#[derive(Debug)]
pub struct Group {
    /// The title.
    pub title: &'static str,
    /// The metric of each bar, with its caption.
    bars: &'static [(Metric, &'static str)],
}

/// The benchmark's phases.
pub const PHASES: Group = Group {
    title: "Time of each phase",
    bars: &[
        (Metric::Populate, "populate"),
        (Metric::Enable, "enable"),
        (Metric::FirstDirty, "dirty, first"),
        (Metric::LaterDirty, "dirty"),
        (Metric::Get, "get"),
        (Metric::FirstClear, "clear, first"),
        (Metric::LaterClear, "clear"),
        (Metric::CopyAll, "copy all"),
        (Metric::CopyRound, "copy"),
        (Metric::Stop, "stop"),
        (Metric::Disable, "disable"),
        (Metric::Restore, "restore"),
    ],
};
/// The time of a page in workloads that change backing memory.
pub const PAGES: Group = Group {
    title: "Time per page",
    bars: &[
        (Metric::Fill, "fill"),
        (Metric::Ahead, "ahead"),
        (Metric::ScanPerPage, "scan"),
        (Metric::FirstWrite, "write, first"),
        (Metric::Read, "read"),
        (Metric::Write, "write"),
        (Metric::AheadByGuest, "ahead, by guest"),
        (Metric::WriteAgain, "write once more"),
        (Metric::Check, "check"),
    ],
};
/// Exits for each page.
pub const EXITS: Group = Group {
    title: "Exits per page accessed",
    bars: &[
        (Metric::FirstExits, "first iteration"),
        (Metric::LaterExits, "later iterations"),
        (Metric::ReadExits, "read"),
        (Metric::WriteExits, "write"),
        (Metric::WriteAgainExits, "write once more"),
        (Metric::CheckExits, "check"),
    ],
};
/// Which share of a group its bars take.
const FILLED: f64 = 0.82;
/// Which share of its place a bar takes.
const THICKNESS: f64 = 0.92;
/// How much higher than the highest bar the axis is.
const HEADROOM: f64 = 1.15;

impl Group {
    /// Whether there is anything to draw.
    pub fn is_measured(&self, section: &Section) -> bool {
        !self.measured(section).is_empty()
    }

    /// Those of them that were measured.
    fn measured(&self, section: &Section) -> Vec<(Metric, &'static str)> {
        let measured = self.bars.iter().filter(|(metric, _)| section.has(*metric));
        measured.copied().collect()
    }
}

/// Draws how long each of a group takes, on a logarithmic scale.
pub fn phases(section: &Section, group: &Group, captions: &Captions) -> Result<String, String> {
    let groups = group.measured(section);
    let metrics: Vec<Metric> = groups.iter().map(|(metric, _)| *metric).collect();
    let section = &section.with(&metrics);
    let unit = Unit::typical(section, &metrics);
    let spreads = metrics.iter().flat_map(|metric| section.spreads(*metric));
    let spreads = spreads.map(|spread| spread.in_units_of(unit.size()));
    let bars = Bars {
        groups,
        title: format!("Time{}", unit.suffix()),
        unit,
        scale: Scale::of_times(&spreads.collect::<Vec<_>>()),
    };
    bars.draw(section, group.title, captions)
}

/// Draws how many exits each page costs.
pub fn exits(section: &Section, captions: &Captions) -> Result<String, String> {
    let groups = EXITS.measured(section);
    let metrics: Vec<Metric> = groups.iter().map(|(metric, _)| *metric).collect();
    let section = &section.with(&metrics);
    let spreads = groups
        .iter()
        .flat_map(|(metric, _)| section.spreads(*metric));
    let greatest = spreads.map(|spread| spread.greatest).max_by(f64::total_cmp);
    let high = greatest.filter(|greatest| *greatest > 0.0).unwrap_or(1.0) * HEADROOM;
    let bars = Bars {
        groups,
        title: "Exits per page".into(),
        unit: Unit::Number,
        scale: Scale::even(0.0, high, even_marks(high)),
    };
    bars.draw(section, EXITS.title, captions)
}

/// The contents of the bars of a plot.
struct Bars {
    /// The metric of each group of bars, with its caption.
    groups: Vec<(Metric, &'static str)>,
    /// The caption of the axis.
    title: String,
    unit: Unit,
    scale: Scale,
}

impl Bars {
    /// Draws a panel for the fewest vCPUs, and one for the most if they aren't the same.
    fn draw(&self, section: &Section, title: &str, captions: &Captions) -> Result<String, String> {
        canvas::draw(section, title, captions, symbol, |area| {
            match section.vcpus().as_slice() {
                [] => Ok(()),
                [alone] => self.panel(area, section, *alone),
                [fewest, .., most] => {
                    let halves = area.split_evenly((2, 1));
                    self.panel(&halves[0], section, *fewest)?;
                    self.panel(&halves[1], section, *most)
                }
            }
        })
    }

    /// Draws the measurements with so many vCPUs.
    fn panel(&self, area: &Area<'_>, section: &Section, vcpus: u64) -> Result<(), String> {
        let count = self.groups.len();
        let middles = (0..count).map(|group| group as f64 + 0.5).collect();
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .caption(counted(vcpus), font(LABEL))
            .x_label_area_size(2 * LABEL)
            .y_label_area_size(canvas::axis_width(area, self.scale.marks()))
            .build_cartesian_2d(Scale::even(0.0, count as f64, middles), self.scale.clone())
            .map_err(shown)?;
        let name = |at: &f64| {
            let group = self.groups.get(at.floor().max(0.0) as usize);
            group.map_or_else(String::new, |(_, name)| name.to_string())
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .y_desc(self.title.as_str())
            .x_label_formatter(&name)
            .y_label_formatter(&|mark| label(*mark))
            .x_labels(count)
            .y_labels(self.scale.marks().len())
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(font(LABEL))
            .axis_desc_style(font(LABEL))
            .draw()
            .map_err(shown)?;
        let place = FILLED / section.series.len().max(1) as f64;
        for (index, series) in section.series.iter().enumerate() {
            for (group, (metric, _)) in self.groups.iter().enumerate() {
                let left = group as f64 + (1.0 - FILLED) / 2.0 + place * index as f64;
                let Some(spread) = series.spread(*metric, vcpus) else {
                    continue;
                };
                let spread = spread.in_units_of(self.unit.size());
                let bar = self.bar(spread.median, left, place * THICKNESS);
                let bar = Rectangle::new(bar, colour(series.order).filled());
                let whisker = self.whisker(spread, left + place * THICKNESS / 2.0);
                chart.draw_series([bar]).map_err(shown)?;
                chart.draw_series([whisker]).map_err(shown)?;
            }
        }
        Ok(())
    }

    /// Two corners of a bar.
    fn bar(&self, median: f64, left: f64, width: f64) -> [(f64, f64); 2] {
        let height = self.scale.within(median);
        [(left, self.scale.low()), (left + width, height)]
    }

    /// The line from the least to the greatest.
    fn whisker(&self, spread: Spread, middle: f64) -> PathElement<(f64, f64)> {
        let ends = [spread.least, spread.greatest].map(|end| (middle, self.scale.within(end)));
        PathElement::new(ends.to_vec(), INK.stroke_width(1))
    }
}

/// The legend's symbol: a square of the bar's colour.
fn symbol(area: &Area<'_>, at: (i32, i32), series: &Series) -> Result<(), String> {
    let (left, y) = at;
    let square = Rectangle::new(
        [(left + 6, y - 6), (left + 18, y + 6)],
        colour(series.order).filled(),
    );
    area.draw(&square).map_err(shown)
}
