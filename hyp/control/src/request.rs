//! What the user wants run.

use crate::options::Options;
use records::image::GuestImage;

/// A request to run a guest.
#[derive(Debug)]
pub struct Request<'m> {
    /// The options.
    pub options: Options,
    /// The guest's image. With firmware that has no kernel to boot, it is empty.
    pub image: GuestImage<'m>,
    /// The firmware that starts in the image's place, if there is some, and may boot it.
    pub firmware: Option<&'m [u8]>,
    /// The guest's initial ramdisk, if it has one.
    pub ramdisk: Option<&'m [u8]>,
    /// The guest's command line.
    pub bootargs: &'m str,
}
