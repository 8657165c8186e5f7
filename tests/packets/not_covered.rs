//! What the agent does not meet yet, with what it lacks. These are run all the same and counted at the end; what
//! passes is named there and has to leave this list.

/// `(case or scenario, what is missing)`.
pub const NOT_COVERED: &[(&str, &str)] = &[];

/// Why HTTP checks do not count yet. The packets of cases that have such checks do.
pub const HTTP_CHECKS: Option<&str> = None;
