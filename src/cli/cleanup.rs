//! `sluice cleanup`.

use clap::Args;

use crate::dataplane::nftables::Nftables;

#[derive(Debug, Args)]
pub struct Cleanup {}

impl Cleanup {
    pub fn execute(self) -> anyhow::Result<()> {
        let removed = Nftables::open()?.cleanup()?;
        for family in &removed {
            eprintln!("removed the {family} table");
        }
        if removed.is_empty() {
            eprintln!("there was nothing to remove");
        }
        Ok(())
    }
}
