//! The position of a scan over the pages of all objects, which is continued a few pages at a time.

use crate::system::reverse_map::ObjectId;

/// A position: a page of an object, or its end.
#[derive(Debug)]
pub(crate) struct ScanCursor {
    pub(crate) object: ObjectId,
    /// The next page. The scan advances it.
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
