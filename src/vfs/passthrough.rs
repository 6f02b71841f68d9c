//! Pass-through of a source directory.

use std::path::Path;

use super::Result;

/// Whether writing is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everything that the source allows.
    ReadWrite,
    /// What changes anything is refused with EROFS.
    ReadOnly,
}

/// Serves a source directory.
#[derive(Debug)]
pub struct PassThrough {}

impl PassThrough {
    /// Opens the source directory.
    ///
    /// # Errors
    /// What opening it gives.
    pub fn new(_source: &Path, _access: Access) -> Result<Self> {
        Ok(Self {})
    }
}
