//! Looks up objects by their identifiers. Takes a lock, so faults don't use it.

use crate::object::Object;
use crate::system::reverse_map::{ObjectId, ReverseMap};
use crate::system::scan_cursor::ScanCursor;
use alloc::sync::Arc;

impl Object {
    /// The object of this name, unless its last owner is letting go of it.
    pub(crate) fn named(id: ObjectId, objects: &ReverseMap) -> Option<Arc<Self>> {
        objects.get(id)?.downcast().ok()
    }
}

impl ScanCursor {
    /// The object that it points to, or the next one if it has come to its end. `None` at the end of a round, and where there
    /// is no object.
    pub(crate) fn object(&mut self, objects: &ReverseMap) -> Option<Arc<Object>> {
        if let Some(object) = Object::named(self.object, objects)
            && self.page < object.pages()
        {
            return Some(object);
        }
        self.page = 0;
        let next = objects.after(self.object);
        let next: Option<Arc<Object>> = next.and_then(|next| next.downcast().ok());
        self.object = next.as_ref().map_or(ObjectId::NONE, |object| object.id());
        next
    }
}
