//! Checks a device tree's structure, without the specification's rules for names.
//!
//! Trees in the field break those rules: names longer than 31 characters are common. The tree reader either refuses such a tree
//! as a whole, or reads it unchecked and panics where its structure is broken. This check makes the unchecked read safe. The
//! reader has already checked header and reservation block.

use core::ffi::CStr;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

const OFFSET_OF_STRUCTURE: usize = 8;
const OFFSET_OF_STRINGS: usize = 12;
const OFFSET_OF_STRINGS_SIZE: usize = 32;

/// Whether the structure block of `blob` is well-formed: nodes nest, properties come before child nodes and lie within the
/// blob, and all names are text (Devicetree Specification 5.4).
pub fn is_well_formed(blob: &[u8]) -> bool {
    walk(blob).is_some()
}

fn walk(blob: &[u8]) -> Option<()> {
    let strings = strings_block(blob)?;
    let mut offset = word(blob, OFFSET_OF_STRUCTURE)? as usize;
    let mut depth = 0usize;
    let mut may_have_properties = false;
    if word(blob, offset)? != BEGIN_NODE {
        return None;
    }
    loop {
        match word(blob, offset)? {
            BEGIN_NODE => {
                let name = text(blob.get(offset.checked_add(4)?..)?)?;
                offset = align(offset + 4 + name.len() + 1)?;
                depth += 1;
                may_have_properties = true;
            }
            PROPERTY if may_have_properties => {
                let length = word(blob, offset + 4)? as usize;
                text(strings.get(word(blob, offset + 8)? as usize..)?)?;
                let end = (offset + 12).checked_add(length)?;
                blob.get(..end)?;
                offset = align(end)?;
            }
            END_NODE => {
                depth = depth.checked_sub(1)?;
                may_have_properties = false;
                offset += 4;
                if depth == 0 {
                    return (word(blob, offset)? == END).then_some(());
                }
            }
            NOP => offset += 4,
            _ => return None,
        }
    }
}

fn strings_block(blob: &[u8]) -> Option<&[u8]> {
    let start = word(blob, OFFSET_OF_STRINGS)? as usize;
    let size = word(blob, OFFSET_OF_STRINGS_SIZE)? as usize;
    blob.get(start..start.checked_add(size)?)
}

fn word(blob: &[u8], offset: usize) -> Option<u32> {
    let bytes = blob.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn text(bytes: &[u8]) -> Option<&str> {
    CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok()
}

fn align(offset: usize) -> Option<usize> {
    offset.checked_next_multiple_of(4)
}
