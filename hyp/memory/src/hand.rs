//! A hand that goes around over the pages of all objects, for whoever looks at a few of them at a time.

use crate::object::Object;
use crate::reverse::{ObjectId, Objects};
use alloc::sync::Arc;

/// Where it points.
#[derive(Debug)]
pub(crate) struct Hand {
    object: ObjectId,
    /// The page that is looked at next. Whoever has looked moves it on.
    pub(crate) page: u64,
}

impl Hand {
    /// Before the first object.
    pub(crate) const fn new() -> Self {
        Self {
            object: ObjectId::NONE,
            page: 0,
        }
    }

    /// The object that it points to, or the next one if it has come to its end. `None` at the end of a round, and where there
    /// is no object.
    pub(crate) fn object(&mut self, objects: &Objects) -> Option<Arc<Object>> {
        if let Some(object) = objects.get(self.object)
            && self.page < object.pages()
        {
            return Some(object);
        }
        self.page = 0;
        let next = objects.after(self.object);
        self.object = next.as_ref().map_or(ObjectId::NONE, |object| object.id());
        next
    }
}
