//! Cases that the agent does not meet yet, with what it lacks. A case that passes has to leave this list.

/// `(case, what is missing)`.
pub const NOT_COVERED: &[(&str, &str)] = &[];
