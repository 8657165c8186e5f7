//! The index. See [`crate::cluster`].

/// The index over all objects.
#[derive(Default)]
pub struct Index;

/// What changed since the last look.
#[derive(Default)]
pub struct Dirty;
