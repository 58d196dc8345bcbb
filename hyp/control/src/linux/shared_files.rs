//! One copy of each file that several VMs start from: their memory shares its frames until they write it.

use crate::guest::Host;
use crate::machine::Machine;
use crate::request::Request;
use alloc::sync::Arc;
use alloc::vec::Vec;
use memory::Object;
use records::size::Size;

/// The copies. While they are there, a VM that writes a page of one gets a frame of its own, whatever the other VMs have done: the
/// time that it takes tells nothing of them.
pub(super) struct SharedFiles<'r>(Vec<(&'r [u8], Arc<Object>)>);

impl<'r> SharedFiles<'r> {
    /// Makes copies of the files that several of these requests have, as long as `free` bytes of memory last. Of any other file
    /// each VM gets a copy of its own, and of all files if it has all of its memory from the start.
    pub fn of<M: Machine>(host: &Host<'_, M>, requests: &'r [Request<'r>], mut free: u64) -> Self {
        let mut shared = Self(Vec::new());
        let files = || {
            let shares = requests.iter().filter(|request| !request.options.prefault);
            shares.flat_map(Request::files)
        };
        for (index, file) in files().enumerate() {
            let bytes = file.len() as u64;
            let is_others = files().skip(index + 1).any(|other| is_same(file, other));
            let has_room = bytes <= free && shared.0.try_reserve(1).is_ok();
            if !is_others || !has_room || shared.object(file).is_some() {
                continue;
            }
            if let Ok(object) = Object::image(&host.own.memory, file) {
                free = free.saturating_sub(object.bytes());
                let users = files().filter(|other| is_same(file, other)).count();
                let bytes = Size(object.bytes());
                log::info!("{users} VMs share a file of {bytes} until they write it");
                shared.0.push((file, object));
            }
        }
        shared
    }

    /// The copy of a file, if there is one.
    pub fn object(&self, file: &[u8]) -> Option<Arc<Object>> {
        let mut all = self.0.iter();
        let found = all.find(|(shared, _)| is_same(shared, file));
        found.map(|(_, object)| object.clone())
    }
}

/// Whether two files have the same content.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    // Most are at the same address.
    one.len() == other.len() && (one.as_ptr() == other.as_ptr() || one == other)
}
