//! Time against the number of vCPUs, both logarithmic: a scaling operation is flat, a serial one rises along the diagonal. The
//! point is the median, the bar the extremes. The systems that Parvisor is compared with are dashed.

use plotters::prelude::*;

use super::super::metric::Metric;
use super::super::section::{Section, Series};
use super::super::statistics::Spread;
use super::super::table::Unit;
use super::Captions;
use super::canvas::{self, Area, GRID, INK, colour, font, shown};
use super::scale::{Scale, label};

/// The radius of a marker.
const MARKER: i32 = 4;
/// The width of a line.
const STROKE: u32 = 2;
/// Lengths of a dash and of the gap behind it.
const DASH: (i32, i32) = (6, 4);
/// How far apart the first and the last series stand, as a share of the axis, so that their bars don't hide each other.
const BESIDE: f64 = 0.015;
/// Draws how `metric` depends on the number of vCPUs.
pub fn draw(section: &Section, metric: Metric, captions: &Captions) -> Result<String, String> {
    let section = &section.with(&[metric]);
    canvas::draw(section, metric.name(), captions, symbol, |area| {
        chart(area, section, metric)
    })
}

fn chart(area: &Area<'_>, section: &Section, metric: Metric) -> Result<(), String> {
    let unit = Unit::typical(section, &[metric]);
    let vcpus: Vec<f64> = section.vcpus().iter().map(|count| *count as f64).collect();
    let spreads = section.spreads(metric);
    let spreads: Vec<Spread> = spreads
        .map(|spread| spread.in_units_of(unit.size()))
        .collect();
    let times = Scale::of_times(&spreads);
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(canvas::axis_width(area, times.marks()))
        .build_cartesian_2d(Scale::of_counts(vcpus.clone()), times.clone())
        .map_err(shown)?;
    chart
        .configure_mesh()
        .x_desc("vCPUs")
        .y_desc(format!("{}{}", metric.name(), unit.suffix()))
        .x_label_formatter(&|count| format!("{count:.0}"))
        .y_label_formatter(&|time| label(*time))
        .x_labels(vcpus.len())
        .y_labels(times.marks().len())
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style(font(canvas::LABEL))
        .axis_desc_style(font(canvas::LABEL))
        .draw()
        .map_err(shown)?;
    let last = (section.series.len() as f64 - 1.0).max(1.0);
    let most = vcpus.last().copied().unwrap_or(1.0) / vcpus.first().copied().unwrap_or(1.0);
    for (index, series) in section.series.iter().enumerate() {
        let shift = most.powf(BESIDE * (index as f64 / last - 0.5));
        let points = series.points.keys().filter_map(|count| {
            let spread = series.spread(metric, *count)?.in_units_of(unit.size());
            (spread.least > 0.0).then_some((*count as f64 * shift, spread))
        });
        let points: Vec<(f64, Spread)> = points.collect();
        line(&mut chart, series, &points)?;
    }
    Ok(())
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;

fn line(
    chart: &mut Chart<'_, '_>,
    series: &Series,
    points: &[(f64, Spread)],
) -> Result<(), String> {
    let index = series.order;
    let style = colour(index).stroke_width(STROKE);
    let medians: Vec<(f64, f64)> = points
        .iter()
        .map(|(count, spread)| (*count, spread.median))
        .collect();
    if series.is_parvisor {
        chart
            .draw_series(LineSeries::new(medians.clone(), style))
            .map_err(shown)?;
    } else {
        let (dash, gap) = DASH;
        let dashed = DashedLineSeries::new(medians.clone(), dash, gap, style);
        chart.draw_series(dashed).map_err(shown)?;
    }
    let extremes = points
        .iter()
        .filter(|(_, spread)| spread.least < spread.greatest);
    let bars = extremes.map(|(count, spread)| {
        PathElement::new(
            vec![(*count, spread.least), (*count, spread.greatest)],
            colour(index).mix(0.55).stroke_width(STROKE),
        )
    });
    chart.draw_series(bars).map_err(shown)?;
    let markers = medians.into_iter();
    chart
        .draw_series(markers.map(|point| EmptyElement::at(point) + marker((0, 0), index)))
        .map_err(shown)?;
    Ok(())
}

/// The legend's symbol: a piece of the line with its marker.
fn symbol(area: &Area<'_>, at: (i32, i32), series: &Series) -> Result<(), String> {
    let index = series.order;
    let style = colour(index).stroke_width(STROKE);
    let (left, y) = at;
    let pieces: &[(i32, i32)] = if series.is_parvisor {
        &[(0, 24)]
    } else {
        &[(0, 6), (18, 24)]
    };
    for (from, to) in pieces {
        let piece = PathElement::new(vec![(left + from, y), (left + to, y)], style);
        area.draw(&piece).map_err(shown)?;
    }
    area.draw(&(EmptyElement::at((left + 12, y)) + marker((0, 0), index)))
        .map_err(shown)
}

/// A filled shape around `centre`, a different one for each of some series.
fn marker(centre: (i32, i32), index: usize) -> Polygon<(i32, i32)> {
    let (x, y) = centre;
    let at = |(dx, dy): &(f64, f64)| {
        let size = f64::from(MARKER);
        (
            x + (dx * size).round() as i32,
            y + (dy * size).round() as i32,
        )
    };
    let corners: &[(f64, f64)] = match index % 4 {
        0 => &[
            (-1.0, -0.4),
            (-0.4, -1.0),
            (0.4, -1.0),
            (1.0, -0.4),
            (1.0, 0.4),
            (0.4, 1.0),
            (-0.4, 1.0),
            (-1.0, 0.4),
        ],
        1 => &[(0.0, -1.25), (1.2, 1.0), (-1.2, 1.0)],
        2 => &[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        _ => &[(0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)],
    };
    Polygon::new(
        corners.iter().map(at).collect::<Vec<_>>(),
        colour(index).filled(),
    )
}
