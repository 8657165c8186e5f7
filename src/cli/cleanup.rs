//! `sluice cleanup`.

use anyhow::bail;
use clap::Args;

use crate::dataplane::ipvs::{self, plan::Whose};
use crate::dataplane::nftables::Nftables;
use crate::host::kube_proxy::{self, running};

#[derive(Debug, Args)]
pub struct Cleanup {
    /// Remove what kube-proxy left, too: its nftables tables, its KUBE-* chains in iptables (nft and
    /// legacy), kube-ipvs0 and its virtual services in IPVS.
    #[arg(long)]
    pub(super) kube_proxy: bool,
    /// Do so though a kube-proxy seems to be running, which would make its rules again.
    #[arg(long, requires = "kube_proxy")]
    pub(super) force: bool,
}

impl Cleanup {
    pub fn execute(self) -> anyhow::Result<()> {
        let mut removed: Vec<String> = Vec::new();
        for family in Nftables::open()?.cleanup()? {
            removed.push(format!("the {family} table of sluice"));
        }
        removed.extend(ipvs::cleanup(Whose::Ours)?);
        let result = if self.kube_proxy { self.clean_up_kube_proxy(&mut removed) } else { Ok(()) };
        removed.iter().for_each(|what| eprintln!("removed {what}"));
        if removed.is_empty() && result.is_ok() {
            eprintln!("there was nothing to remove");
        }
        result
    }

    fn clean_up_kube_proxy(&self, removed: &mut Vec<String>) -> anyhow::Result<()> {
        if let Some(signs) = running::signs(running::METRICS).filter(|_| !self.force) {
            bail!("{signs}: its rules stay, since it would make them again. {}", running::REMEDY);
        }
        let left = kube_proxy::remove(true);
        removed.extend(left.found.iter().map(|leftover| format!("kube-proxy's {leftover}")));
        match left.errors.len() {
            0 => Ok(()),
            _ => bail!("{}", left.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        }
    }
}
