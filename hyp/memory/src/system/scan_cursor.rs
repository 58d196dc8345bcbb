//! The position of a scan over the pages of all objects, which is continued a few pages at a time.

use crate::system::reverse_map::ObjectId;

/// A page of an object, or the end of one.
#[derive(Debug)]
pub(crate) struct ScanCursor {
    pub(crate) object: ObjectId,
    /// The page that is looked at next. Whoever has looked moves it on.
    pub(crate) page: u64,
}

impl ScanCursor {
    /// Before the first object.
    pub(crate) const fn new() -> Self {
        Self {
            object: ObjectId::NONE,
            page: 0,
        }
    }
}
