//! `scripts/bench`: a matrix of benchmark runs in one command, and its results as tables, JSON, plots and one page.

pub mod capture;
pub mod estimate;
pub mod label;
pub mod matrix;
pub mod metric;
pub mod options;
pub mod page;
pub mod parse;
pub mod plots;
pub mod progress;
pub mod results;
pub mod section;
pub mod statistics;
pub mod table;
