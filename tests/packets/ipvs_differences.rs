//! What mode ipvs does differently because IPVS forces it: deploy/IPVS.md tells users of it.

use anyhow::{Result, bail};

use crate::case::{Case, Expect, Step};
use crate::ipv6;
use crate::probe::{Outcome, Target};

/// What is seen instead of what the case has.
#[derive(Clone, Copy, Debug)]
enum Instead {
    /// All flows to this target, `ADDRESS:PORT/PROTOCOL`, are refused; they would get no answer.
    Refused(&'static str),
    /// The administrator's counter of this name counts nothing.
    NotCounted(&'static str),
}

use Instead::{NotCounted, Refused};

/// `(case, step, what)`, step 0 is the start.
const IPVS_DIFFERENCES: &[(&str, usize, Instead)] = &[
    // The address is the host's own: what no Service has there is refused, not passed on.
    ("externalip-cluster", 0, Refused("203.0.113.197:81/tcp")),
    ("lb-cluster", 0, Refused("198.51.100.229:81/tcp")),
    ("lb-ip-shared-by-two-services", 0, Refused("198.51.103.1:82/tcp")),
    ("lb-ip-shared-by-two-services", 1, Refused("198.51.103.1:80/tcp")),
    ("service-addresses-do-not-expose-the-node", 0, Refused("198.51.110.5:9999/tcp")),
    ("service-addresses-do-not-expose-the-node", 0, Refused("198.51.110.5/icmp")),
    // IPVS takes packets on their way in and sends them on through output: only replies are forwarded.
    ("rules-of-the-administrator", 0, NotCounted("after")),
    ("rules-of-the-administrator", 1, NotCounted("after")),
];

/// Puts what is seen in mode ipvs into a case, in the family that it is in.
///
/// # Errors
/// Where the case has nothing of the kind: then the list above is wrong.
pub fn apply(case: &mut Case, v6: bool) -> Result<()> {
    let name = case.name.clone();
    let family = |text: &str| if v6 { ipv6::in_text(text) } else { String::from(text) };
    for (_, number, instead) in IPVS_DIFFERENCES.iter().filter(|(of, ..)| *of == name) {
        let step = match number.checked_sub(1) {
            None => Some((&mut case.flows, &mut case.counters)),
            Some(index) => case.steps.get_mut(index).map(|Step { flows, counters, .. }| (flows, counters)),
        };
        let Some((flows, counters)) = step else { bail!("{name} has no step {number}") };
        let mut found = false;
        match instead {
            Refused(to) => {
                let to: Target = family(to).parse()?;
                for flow in flows.iter_mut().filter(|flow| flow.to == to) {
                    found |= flow.expect.outcomes.contains(&Outcome::Timeout);
                    flow.expect = Expect::only(Outcome::Refused);
                }
            }
            NotCounted(counter) => {
                for counter in counters.iter_mut().filter(|it| it.name == *counter) {
                    found |= std::mem::replace(&mut counter.counted, false);
                }
            }
        }
        if !found {
            bail!("{name} has nothing in step {number} that could differ by {instead:?}");
        }
    }
    Ok(())
}
