//! The results as plots: lines of time against vCPUs, bars for each phase, and exits per page. Each is drawn as SVG; the
//! PNG is rendered from it with a font of our own, so that neither fonts nor a font configuration need be installed.

mod bars;
mod canvas;
mod lines;
mod scale;

use std::sync::OnceLock;

use plotters::style::{FontStyle, register_font};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

use super::metric::Metric;
use super::section::Section;
use emulator::error::ToolError;

/// The family that plots are drawn with. A viewer of the SVG takes its own; for the layout and the PNG it is DejaVu Sans.
const FAMILY: &str = "sans-serif";
/// How many pixels of the PNG one unit of the SVG becomes.
const SCALE: f32 = 2.0;
/// The metrics that are shown as lines over several numbers of vCPUs.
const AS_LINES: [Metric; 13] = [
    Metric::LaterDirty,
    Metric::FirstDirty,
    Metric::Populate,
    Metric::FirstClear,
    Metric::LaterClear,
    Metric::LongestExit,
    Metric::HarvestPerPage,
    Metric::Stop,
    Metric::Fill,
    Metric::Read,
    Metric::Write,
    Metric::Check,
    Metric::Merge,
];

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// The beginning of its files' names.
    pub name: String,
    /// Its description in words, for readers who can't see it.
    pub title: String,
    /// The plot as SVG.
    pub svg: String,
}

/// The text above every plot of a section.
#[derive(Clone, Debug)]
pub struct Captions {
    /// The workload.
    pub workload: String,
    /// Machine, clock, and how the points were made.
    pub made: String,
}

/// All plots of a section.
///
/// # Errors
///
/// One line if a plot can't be drawn, which isn't expected of any results.
pub fn plots(section: &Section, captions: &Captions) -> Result<Vec<Plot>, ToolError> {
    register();
    let mut plots = Vec::new();
    let failed = |error: String| ToolError::Io(format!("a plot can't be drawn: {error}"));
    if section.vcpus().len() > 1 {
        let metrics = AS_LINES.into_iter();
        for metric in metrics.filter(|metric| section.has(*metric)) {
            plots.push(Plot {
                name: metric.slug().into(),
                title: format!("{} against vCPUs", metric.name()),
                svg: lines::draw(section, metric, captions).map_err(failed)?,
            });
        }
    }
    for (name, group) in [("phases", bars::PHASES), ("pages", bars::PAGES)] {
        if group.is_measured(section) {
            plots.push(Plot {
                name: name.into(),
                title: group.title.into(),
                svg: bars::phases(section, &group, captions).map_err(failed)?,
            });
        }
    }
    if bars::EXITS.is_measured(section) {
        plots.push(Plot {
            name: "exits".into(),
            title: "Exits per page".into(),
            svg: bars::exits(section, captions).map_err(failed)?,
        });
    }
    Ok(plots)
}

/// Renders an SVG as a PNG.
///
/// # Errors
///
/// One line if it can't be rendered.
pub fn png(svg: &str) -> Result<Vec<u8>, ToolError> {
    let failed = |error: String| ToolError::Io(format!("a plot can't be rendered: {error}"));
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| failed(error.to_string()))?;
    let size = tree.size().to_int_size();
    let (width, height) = (size.width() * SCALE as u32, size.height() * SCALE as u32);
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| failed("it has no size".into()))?;
    resvg::render(
        &tree,
        Transform::from_scale(SCALE, SCALE),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| failed(error.to_string()))
}

/// Makes the font known that texts are measured with.
fn register() {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        // It can't fail: the font is part of the program.
        let _ = register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular());
    });
}

#[cfg(test)]
mod tests {
    use super::super::section::tests::{record, results};
    use super::*;

    fn captions() -> Captions {
        Captions {
            workload: "8 MiB < 9 MiB & more".into(),
            made: "neoverse-n1".into(),
        }
    }

    #[test]
    fn results_make_lines_bars_and_exits() {
        let records = [1, 2, 48].into_iter().flat_map(|vcpus| {
            [
                record("mutex", vcpus, vcpus * 1_000_000),
                record("parallel", vcpus, 1_000_000),
            ]
        });
        let sections = Section::all(&results(records));
        let plots = plots(&sections[0], &captions()).expect("they can be drawn");
        let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "dirty-later",
                "dirty-first",
                "populate",
                "clear-first",
                "clear-later",
                "phases",
                "exits"
            ]
        );
        for plot in &plots {
            assert!(plot.svg.contains("parallel"), "{}: a legend", plot.name);
            let png = png(&plot.svg).expect("it can be rendered");
            assert!(png.starts_with(b"\x89PNG"), "{}", plot.name);
        }
        assert!(plots[0].svg.contains("vCPUs"));
    }

    #[test]
    fn a_single_point_without_counters_makes_bars_alone() {
        let mut alone = record("parallel", 4, 0);
        alone.phases.truncate(3);
        alone
            .phases
            .iter_mut()
            .for_each(|phase| phase.counters.clear());
        let sections = Section::all(&results([alone]));
        let plots = plots(&sections[0], &captions()).expect("they can be drawn");
        let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
        assert_eq!(names, ["phases"]);
    }
}
