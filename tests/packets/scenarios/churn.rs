//! The agent is killed while objects change: what it finds at its next start must not matter.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{apply, remote_pods, service, slice};
use crate::lab::Lab;
use crate::probe::slowness;

const SERVICES: usize = 12;
const KILLS: usize = 25;

/// After kills at whatever moment, the rules are those that a fresh start makes of the same objects, but for the
/// numbering of indices.
pub fn killed_while_objects_change(lab: &mut Lab) -> Result<()> {
    // Reproducible: xorshift from a fixed seed. Which moment of the agent a kill meets is chance anyway.
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap_or(1)).unwrap_or(0)
    };
    for _ in 0..KILLS {
        for _ in 0..4 {
            for _ in 0..3 {
                let number = random(SERVICES);
                change(lab, number, random(4), random(9))?;
            }
            lab.cluster.write()?;
            sleep(Duration::from_micros(u64::try_from(random(6000))?));
        }
        lab.take_agent()?.kill()?;
        lab.start_agent()?;
        // Often the next kill meets the start.
        sleep(Duration::from_millis(u64::try_from(random(60))?));
    }
    apply(lab, &[service("last", "10.96.223.250", None), slice("last", &remote_pods(2))])?;
    // In mode ipvs a change is many steps, of which the sentinel's are not the last.
    let mut survived = lab.rules()?;
    loop {
        sleep(Duration::from_millis(100) * slowness());
        let now = lab.rules()?;
        if now == survived {
            break;
        }
        survived = now;
    }
    lab.take_agent()?.terminate()?;
    lab.wipe()?;
    lab.start_agent()?;
    lab.settle()?;
    let fresh = lab.rules()?;
    compare(&survived, &fresh)
}

fn change(lab: &mut Lab, number: usize, kind: usize, count: usize) -> Result<()> {
    let name = format!("s{number}");
    // Deleting what is not there is no change.
    let delete = |lab: &mut Lab, kind: &str, name: &str| drop(lab.cluster.delete("scenario", kind, name));
    match kind {
        0 => {
            delete(lab, "Service", &name);
            delete(lab, "EndpointSlice", &format!("{name}-1"));
        }
        1 => lab.cluster.apply("scenario", &slice(&name, &[]))?,
        _ => {
            let node_port = count.is_multiple_of(2).then(|| 32200 + u16::try_from(number).unwrap_or(0));
            lab.cluster
                .apply("scenario", &service(&name, &format!("10.96.223.{}", number + 1), node_port))?;
            lab.cluster.apply("scenario", &slice(&name, &remote_pods(count)))?;
        }
    }
    Ok(())
}

fn compare(survived: &BTreeSet<String>, fresh: &BTreeSet<String>) -> Result<()> {
    // The sentinel's endpoint is another one in each.
    let own = |rules: &BTreeSet<String>| -> BTreeSet<String> {
        rules
            .iter()
            .filter(|line| !line.contains("10.96.255.254") && !line.contains("fd00:10:96::fffe"))
            .cloned()
            .collect()
    };
    let (survived, fresh) = (own(survived), own(fresh));
    let list = |set: Vec<&String>| set.into_iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    let extra = list(survived.difference(&fresh).collect());
    let missing = list(fresh.difference(&survived).collect());
    if !extra.is_empty() || !missing.is_empty() {
        bail!(
            "after {KILLS} kills the rules differ from a fresh start's; too much:\n{extra}\nmissing:\n{missing}"
        );
    }
    Ok(())
}
