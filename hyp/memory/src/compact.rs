//! Compaction: moves pages so that 2 MiB regions are contiguous again and can be mapped by blocks.

pub(crate) mod compaction;
pub(crate) mod idle;
