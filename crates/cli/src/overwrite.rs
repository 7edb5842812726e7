//! A call writes over nothing that it reads, and no two things to one place.

use std::path::Path;

use navicache_media::overwritten;

use crate::error::{Error, Result};

/// A file of a call, and what names it there.
pub type Named<'a> = (&'static str, &'a Path);

/// Refuses a call that would lose a file of its own. Devices and pipes lose nothing.
///
/// # Errors
/// Two of what is written, or one of them and what is read, are the same file.
pub fn refuse<'a>(
    written: impl IntoIterator<Item = Named<'a>>,
    read: impl IntoIterator<Item = Named<'a>>,
) -> Result<()> {
    let Some((what, path, other)) = overwritten(written, read) else { return Ok(()) };
    let expected = format!("is {other} too, which would be lost; give another name");
    Err(Error::Arguments { what, found: path.display().to_string(), expected })
}

/// A file that may have been left out.
pub fn given<'a>((what, path): (&'static str, Option<&'a Path>)) -> Option<Named<'a>> {
    Some((what, path?))
}
