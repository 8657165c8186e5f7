use super::*;
use crate::forwarding::Target;

fn key(protocol: Protocol) -> Key {
    Key { address: [10, 96, 0, 10].into(), protocol, port: 80 }
}

fn pod(n: u8) -> SocketAddr {
    SocketAddr::new([10, 128, 0, n].into(), 8080)
}

fn frontend(endpoints: &[u8], draining: &[u8]) -> Frontend {
    let list = |of: &[u8]| of.iter().map(|n| pod(*n)).collect::<Vec<_>>();
    let inside = match endpoints {
        [] => Target::Refuse,
        endpoints => Target::Endpoints(list(endpoints).into()),
    };
    let draining = (!draining.is_empty()).then(|| list(draining).into());
    Frontend { inside, draining, ..Frontend::refusing() }
}

/// A virtual service that goes from one frontend to the next; what each change does after the tables, as text.
struct Service {
    key: Key,
    state: State,
    now: Option<Frontend>,
}

impl Service {
    fn new(protocol: Protocol, now: Frontend) -> Service {
        let mut service = Service { key: key(protocol), state: State::default(), now: None };
        service.becomes(Some(now));
        service
    }

    fn becomes(&mut self, after: Option<Frontend>) -> Vec<String> {
        let mut phases = Phases::default();
        let limit = Instant::now() + LIMIT;
        self.state.change(self.key, self.now.as_ref(), after.as_ref(), limit, &mut phases);
        self.now = after;
        let steps = phases.late.into_iter().chain(phases.early).chain(phases.retired).chain(phases.deleted);
        let steps = steps.filter(|step| !matches!(step, Step::AddDestination(..)));
        steps.map(|step| step.to_string()).collect()
    }
}

#[test]
fn tcp_keeps_its_connections_until_they_end() {
    let mut service = Service::new(Protocol::Tcp, frontend(&[1, 2], &[]));
    assert_eq!(
        service.becomes(Some(frontend(&[2], &[]))),
        ["-e -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 0"]
    );
    assert_eq!(
        service.becomes(Some(frontend(&[1, 2], &[]))),
        ["-e -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 1"]
    );
    assert_eq!(service.becomes(None).len(), 2, "both, and the virtual service stays for them");
    assert!(service.state.lingering.contains_key(&service.key));
}

#[test]
fn udp_and_sctp_keep_their_flows_while_the_endpoint_serves() {
    for (protocol, flag) in [(Protocol::Udp, "-u"), (Protocol::Sctp, "--sctp-service")] {
        let weighs =
            |n: u8, weight: u32| format!("-e {flag} 10.96.0.10:80 -r 10.128.0.{n}:8080 -m -w {weight}");
        let goes = |n: u8| format!("-d {flag} 10.96.0.10:80 -r 10.128.0.{n}:8080");
        let mut service = Service::new(protocol, frontend(&[1, 2], &[]));
        assert_eq!(service.becomes(Some(frontend(&[2], &[1]))), [weighs(1, 0)]);
        assert_eq!(service.becomes(Some(frontend(&[1, 2], &[]))), [weighs(1, 1)], "it is back");
        assert_eq!(service.becomes(Some(frontend(&[2], &[1]))), [weighs(1, 0)]);
        assert_eq!(service.becomes(Some(frontend(&[2], &[]))), [goes(1)], "it serves no more");
        assert_eq!(service.becomes(Some(frontend(&[3], &[]))), [goes(2)]);
        assert_eq!(service.becomes(Some(frontend(&[], &[3]))), [weighs(3, 0)], "nobody else is there");
        let end = service.becomes(Some(frontend(&[], &[])));
        assert_eq!(end, [format!("-D {flag} 10.96.0.10:80")], "with all that it has");
        assert!(service.state.terminating.is_empty() && service.state.lingering.is_empty());
    }
}

/// dh would go on choosing it.
#[test]
fn with_dh_nothing_keeps_its_connections() {
    let with = |scheduler| move |frontend: Frontend| Frontend { scheduler: Some(scheduler), ..frontend };
    let (rr, dh) = (with(Scheduler::Rr), with(Scheduler::Dh));
    let mut service = Service::new(Protocol::Tcp, rr(frontend(&[1, 2, 3], &[])));
    service.becomes(Some(rr(frontend(&[2, 3], &[]))));
    assert_eq!(service.becomes(Some(dh(frontend(&[2, 3], &[])))), ["-d -t 10.96.0.10:80 -r 10.128.0.1:8080"]);
    assert_eq!(service.becomes(Some(dh(frontend(&[3], &[])))), ["-d -t 10.96.0.10:80 -r 10.128.0.2:8080"]);
}
