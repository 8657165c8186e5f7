//! placeholder
/// Steps as text.
pub fn steps(_f: crate::cluster::Family, steps: &[super::model::Step]) -> String {
    format!("{steps:?}")
}
