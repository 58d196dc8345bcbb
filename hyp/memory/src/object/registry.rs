//! Looks up objects by their identifiers. Takes a lock, so faults don't use it.

use crate::object::Object;
use crate::system::reverse_map::{ObjectId, ReverseMap};
use crate::system::scan_cursor::ScanCursor;
use alloc::sync::Arc;

impl Object {
    /// The object with this identifier, unless its last owner is dropping it.
    pub(crate) fn named(id: ObjectId, objects: &ReverseMap) -> Option<Arc<Self>> {
        objects.get(id)?.downcast().ok()
    }
}

impl ScanCursor {
    /// The cursor's object, or the next one if it is through with that. `None` at the end of a round, and if there is no
    /// object.
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
