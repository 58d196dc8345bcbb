//! Where random operations take place: few enough pages that they meet, in places where tables begin and end, with more
//! than one frame that may back each of them.
//!
//! Plain arithmetic over a layout; nothing here is shared.

use stage2::{Bbm, Features, Granule, Ipa, IpaRange, Layout, Level, Pa};

/// Tables of pages that a ground of real size spans.
const TABLES: u64 = 3;

/// The pages that operations choose from.
#[derive(Clone, Debug)]
pub struct Ground {
    layout: Layout,
    pages: Vec<Ipa>,
    largest: Level,
}

/// A range of a ground. Numbers are taken modulo what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Span {
    /// From one of the pages up to another one, in whichever order.
    Pages(u16, u16),
    /// Whole tables of pages: the first, and how many more.
    Tables(u8, u8),
    /// Everything.
    All,
}

/// Which frames back an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// One piece of memory.
    First,
    /// Another one.
    Second,
    /// The first one, a page off: it can be mapped by pages only.
    Shifted,
}

impl Backing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::First, Self::Second, Self::Shifted];
}

impl Ground {
    /// All of a tree with tables of four entries, which starts at `start`.
    pub fn small(start: Level, features: Features) -> Self {
        let layout = Layout::small(start, features);
        let count = layout.all().end.get() / layout.page_size();
        Self {
            layout,
            pages: (0..count)
                .map(|page| Ipa::new(page * layout.page_size()))
                .collect(),
            largest: layout.largest_leaf(),
        }
    }

    /// Three tables of pages at the end of the address space, the first under another entry of level 1 than the rest, if
    /// there is such a level. Blocks of level 2 at most: larger ones have too many pages to look at again and again.
    pub fn real(features: Features) -> Self {
        let layout = Layout::new(features).expect("features that go together");
        let end = layout.all().end.get();
        let table = layout.span(Level::L2);
        let first = end
            .checked_sub(layout.span(Level::L1) + table)
            .unwrap_or(end - TABLES * table);
        let entries = layout.table_entries() as u64;
        let is_of_interest = |page: &u64| {
            let near = |place: u64| (place.saturating_sub(2)..place + 2).contains(page);
            *page < 20 || near(32) || near(128) || near(entries / 2) || *page >= entries - 18
        };
        let page = |table_index: u64, page: u64| {
            Ipa::new(first + table_index * table + page * layout.page_size())
        };
        Self {
            layout,
            pages: (0..TABLES)
                .flat_map(|table| {
                    (0..entries)
                        .filter(is_of_interest)
                        .map(move |index| page(table, index))
                })
                .collect(),
            largest: layout.largest_leaf().max(Level::L2),
        }
    }

    /// How tables are laid out.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether its tables have four entries.
    pub fn is_small(&self) -> bool {
        self.layout.table_entries() == 4
    }

    /// How many pages there are to choose from.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// One of the pages.
    pub fn page(&self, place: u16) -> Ipa {
        self.pages[usize::from(place) % self.pages.len()]
    }

    /// The addresses from the first page to the end of the last one.
    pub fn all(&self) -> IpaRange {
        let last = self.pages[self.pages.len() - 1];
        self.pages[0]..last.offset(self.layout.page_size())
    }

    /// The range that `span` names.
    pub fn range(&self, span: Span) -> IpaRange {
        let all = self.all();
        match span {
            Span::Pages(one, other) => {
                let (one, other) = (self.page(one), self.page(other));
                one.min(other)..one.max(other).offset(self.layout.page_size())
            }
            Span::Tables(first, more) => {
                let bytes = self.layout.span(Level::L2);
                let count = (all.end.get() - all.start.get()) / bytes;
                let start = all.start.offset(u64::from(first) % count * bytes);
                let end = start.offset((u64::from(more) % count + 1) * bytes);
                start..end.min(all.end)
            }
            Span::All => all,
        }
    }

    /// What backs `ipa`. Above 48 bits, where there are such frames.
    pub fn frame(&self, ipa: Ipa, backing: Backing) -> Pa {
        let pa_bits = self.layout.features().pa_bits;
        let within = ipa.offset_in(1 << 44);
        let first = 1 << (pa_bits - 1);
        Pa::new(match backing {
            Backing::First => first + within,
            Backing::Second => first + (1 << (pa_bits - 3)) + within,
            Backing::Shifted => first + within + self.layout.page_size(),
        })
    }

    /// The largest leaf that an operation may ask for, if it would like `level`.
    pub fn largest(&self, level: Level) -> Level {
        level.max(self.largest)
    }

    /// The largest leaf that a fault backed so may ask for.
    pub fn largest_backed(&self, level: Level, backing: Backing) -> Level {
        match backing {
            Backing::Shifted => Level::L3,
            Backing::First | Backing::Second => self.largest(level),
        }
    }
}

/// Every combination of features that changes what the engine does, but for sizes.
fn combinations() -> impl Iterator<Item = Features> {
    [Bbm::Level0, Bbm::Level1, Bbm::Level2]
        .into_iter()
        .flat_map(|bbm| {
            [(false, false), (false, true), (true, false), (true, true)].map(
                |(by_hardware, contiguous)| Features {
                    bbm,
                    hardware_access: by_hardware,
                    hardware_dirty: by_hardware,
                    contiguous,
                    xnx: contiguous,
                    fwb: by_hardware,
                    ..Features::armv8_0(48, 48)
                },
            )
        })
}

/// Grounds with tables of four entries, for every combination of features.
pub fn small_grounds() -> Vec<Ground> {
    let deep = |features: Features, start| {
        // FEAT_BBM's mark is a bit that deep trees have in their blocks' addresses, if pages are smaller.
        let granule = match features.bbm {
            Bbm::Level1 => Granule::Size64K,
            Bbm::Level0 | Bbm::Level2 => Granule::Size4K,
        };
        Ground::small(
            start,
            Features {
                granule,
                ..features
            },
        )
    };
    combinations()
        .flat_map(|features| {
            [
                Ground::small(Level::L2, features),
                deep(features, Level::L1),
                deep(features, Level::L0),
            ]
        })
        .collect()
}

/// Grounds with tables of real size, for every combination of features.
pub fn real_grounds() -> Vec<Ground> {
    combinations().flat_map(sizes).map(Ground::real).collect()
}

/// Granules, address sizes and formats of real tables.
fn sizes(features: Features) -> Vec<Features> {
    let size = |granule, ipa_bits, pa_bits, lpa2| Features {
        granule,
        ipa_bits,
        pa_bits,
        lpa2,
        ..features
    };
    vec![
        size(Granule::Size4K, 32, 48, false),
        size(Granule::Size4K, 40, 48, false),
        size(Granule::Size4K, 48, 48, false),
        size(Granule::Size4K, 52, 52, true),
        size(Granule::Size16K, 40, 48, false),
        size(Granule::Size16K, 52, 52, true),
        size(Granule::Size64K, 42, 48, false),
        size(Granule::Size64K, 52, 52, false),
    ]
}
