//! What goes through the redirects right now: as a picture, as JSON, as metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::check::{Finding, LegReport, Outcome, SessionReport, legs};
use crate::net::{Family, Networks, Range};
use crate::policy::{Policy, Redirect};
use crate::rules::Leg;
use crate::terminal::{Style, paint};

/// Packets and bytes, IP headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A redirect's numbers, since its packet rules were last changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RedirectNumbers {
    /// Its name.
    pub redirect: String,
    /// Sessions that it took.
    pub taken: u64,
    /// Connections to servers that the appliance opened for them with clients' addresses, and
    /// with ports of its own; none without `snat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialled: Option<u64>,
    /// Tracked TCP connections that are open and bear an appliance's mark, by appliance: one keeps
    /// that which it began with. With `snat` those that the appliance opened itself are among
    /// them, unless it uses the client's port, too. None: they could not be counted.
    pub connections: Option<BTreeMap<String, usize>>,
}

/// An appliance's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApplianceNumbers {
    /// Its name.
    pub appliance: String,
    /// What went to it, from clients and servers.
    pub sent: Traffic,
    /// Packets that would have passed it by and were refused.
    pub sealed: Traffic,
    /// Its addresses as neighbours.
    pub next_hops: Vec<NextHop>,
}

/// An appliance as a neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// Where it is.
    pub interface: String,
    /// What the kernel knows of it: `reachable`, `stale`, `failed`, …; none: not asked lately.
    pub state: Option<String>,
    /// Whether packets can be sent to it now; none: not known.
    pub usable: Option<bool>,
}

/// All numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// In the policy's order.
    pub redirects: Vec<RedirectNumbers>,
    /// In the policy's order.
    pub appliances: Vec<ApplianceNumbers>,
}

/// How a redirect's rules are found again among the counters.
#[must_use]
pub fn comments(redirect: &Redirect) -> (String, Option<String>) {
    let appliance = redirect.snat.then(|| Leg::Appliance.comment(redirect));
    (Leg::Clients.comment(redirect), appliance)
}

/// The picture, a few lines a redirect. With `before`, numbers of so long ago, rates are shown.
#[must_use]
pub fn picture(
    policy: &Policy,
    sessions: &[SessionReport],
    numbers: &Numbers,
    before: Option<(&Numbers, Duration)>,
    colour: bool,
) -> String {
    let mut text = String::new();
    for (index, redirect) in policy.redirects.iter().enumerate() {
        let Some(appliance) = policy.appliance_of(redirect) else {
            continue;
        };
        let interfaces: Vec<String> = redirect
            .client_interfaces
            .iter()
            .map(ToString::to_string)
            .collect();
        let clients = if interfaces.is_empty() {
            "no new sessions (draining)".to_owned()
        } else {
            format!("clients on {}", interfaces.join(", "))
        };
        let ports: Vec<String> = redirect.ports.iter().map(ToString::to_string).collect();
        _ = writeln!(
            text,
            "\n{}\n  {} ──► {} on {} ──► {} port {}",
            paint(
                colour,
                Style::Bold,
                &format!("redirect `{}`", redirect.name)
            ),
            clients,
            appliance.name,
            appliance.interface,
            networks(&redirect.servers),
            ports.join(", ")
        );
        text.push_str(&legs(index, sessions, colour));
        let Some(found) = numbers.redirects.get(index) else {
            continue;
        };
        let earlier = before.and_then(|(numbers, ago)| Some((numbers.redirects.get(index)?, ago)));
        let line = |what: &str, now: u64, then: Option<(u64, Duration)>| {
            let rate = then.map_or_else(String::new, |(then, ago)| {
                format!("  {:>8}/s", a_second(now, then, ago))
            });
            format!("  {what:<20} {now:>10}{rate}\n")
        };
        text.push_str(&line(
            "sessions taken",
            found.taken,
            earlier.map(|(then, ago)| (then.taken, ago)),
        ));
        if let Some(now) = found.dialled {
            let then = earlier.and_then(|(then, ago)| Some((then.dialled?, ago)));
            text.push_str(&line("dialled on", now, then));
        }
        let connections = found.connections.as_ref().map_or_else(
            || "not known".to_owned(),
            |counted| connections(counted, appliance.name.as_str()),
        );
        _ = writeln!(text, "  {:<20} {connections}", "connections");
    }
    for (index, found) in numbers.appliances.iter().enumerate() {
        let heading = format!("appliance `{}`", found.appliance);
        _ = writeln!(text, "\n{}", paint(colour, Style::Bold, &heading));
        for hop in &found.next_hops {
            let (state, style) = match (&hop.state, hop.usable) {
                (Some(state), Some(true)) => (state.as_str(), Style::Good),
                (Some(state), _) => (state.as_str(), Style::Error),
                (None, _) => ("not asked lately", Style::Dim),
            };
            _ = writeln!(
                text,
                "  next hop             {} dev {}: {}",
                hop.address,
                hop.interface,
                paint(colour, style, state)
            );
        }
        let earlier = before.and_then(|(numbers, ago)| Some((numbers.appliances.get(index)?, ago)));
        let line = |now: Traffic, then: Option<(Traffic, Duration)>| {
            let rate = then.map_or_else(String::new, |(then, ago)| rate(now, then, ago));
            format!("{}{rate}", traffic(now))
        };
        let sent = line(found.sent, earlier.map(|(then, ago)| (then.sent, ago)));
        _ = writeln!(text, "  {:<20} {sent}", "sent to it");
        let line = line(found.sealed, earlier.map(|(then, ago)| (then.sealed, ago)));
        let style = if found.sealed.packets == 0 {
            Style::Dim
        } else {
            Style::Warning
        };
        _ = writeln!(
            text,
            "  {:<20} {}",
            "sealed off",
            paint(colour, style, &line)
        );
    }
    text
}

/// A redirect's four legs, a line for each family, and one for each that goes astray.
fn legs(redirect: usize, sessions: &[SessionReport], colour: bool) -> String {
    let mut text = String::new();
    for family in Family::ALL {
        let asked: Vec<&LegReport> = sessions
            .iter()
            .filter(|found| found.session.redirect == redirect && found.session.family == family)
            .flat_map(|found| &found.legs)
            .collect();
        if asked.is_empty() {
            continue;
        }
        let mut words = Vec::new();
        let mut astray = String::new();
        for number in legs::Number::ALL {
            // With several client interfaces, one that fails is what is to be known.
            let of_number = || asked.iter().filter(|leg| leg.leg == number);
            let fails = of_number().find(|leg| leg.outcome == Outcome::Astray);
            let (word, style) = match fails {
                Some(_) => ("ASTRAY", Style::Error),
                None if of_number().next().is_none() => ("not asked", Style::Dim),
                None => ("ok", Style::Good),
            };
            words.push(format!(
                "{} {}",
                number.number(),
                paint(colour, style, word)
            ));
            if let Some(leg) = fails {
                _ = writeln!(
                    astray,
                    "    leg {}, {}, in on {}: wanted {}, the kernel says {}{}",
                    number.number(),
                    number.title(),
                    leg.input,
                    leg.expected,
                    leg.kernel,
                    leg.because
                        .map_or_else(String::new, |because| format!(" ({because})"))
                );
            }
        }
        _ = writeln!(
            text,
            "  {:<20} {}",
            format!("legs, {family}"),
            words.join("   ")
        );
        text.push_str(&astray);
    }
    text
}

/// `2 open`, and those of other appliances by name.
fn connections(counted: &BTreeMap<String, usize>, own: &str) -> String {
    let count = |name: &str| counted.get(name).copied().unwrap_or_default();
    let mut text = format!("{:>10} open", count(own));
    for (name, count) in counted
        .iter()
        .filter(|(name, count)| *name != own && **count > 0)
    {
        _ = write!(text, ", {count} still through {name}");
    }
    text
}

/// What keeps sessions from their way, two lines each and the commands that mend it.
#[must_use]
pub fn troubles(findings: &[&Finding], colour: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = paint(colour, Style::Error, "trouble  ");
        _ = writeln!(text, "{state} {}: {}", finding.subject, finding.found);
        _ = writeln!(text, "          {} [{}]", finding.why, finding.code);
        for (at, command) in finding.mend.iter().enumerate() {
            let label = if at == 0 { "mend:" } else { "     " };
            _ = writeln!(text, "          {label} {command}");
        }
    }
    text
}

/// The first networks, and how many more there are.
fn networks(servers: &Networks) -> String {
    const SHOWN: usize = 3;
    let v4 = servers.v4.iter().flat_map(Range::<u32>::prefixes);
    let v6 = servers.v6.iter().flat_map(Range::<u128>::prefixes);
    let mut all = v4.chain(v6);
    let shown: Vec<String> = all
        .by_ref()
        .take(SHOWN)
        .map(|net| net.to_string())
        .collect();
    match all.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn traffic(traffic: Traffic) -> String {
    format!(
        "{:>10} packets  {:>10}",
        traffic.packets,
        bytes(traffic.bytes)
    )
}

/// `1.2 MB`, in powers of 1000.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut unit = 0;
    let mut scaled = bytes;
    let mut rest = 0;
    while scaled >= 1000 && unit + 1 < UNITS.len() {
        rest = scaled % 1000 / 100;
        scaled /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{scaled} {name}")
    } else {
        format!("{scaled}.{rest} {name}")
    }
}

/// A second's worth of what came since; counters that were set back count from 0.
fn rate(now: Traffic, then: Traffic, ago: Duration) -> String {
    format!(
        "  {:>8} packets/s  {:>10}/s",
        a_second(now.packets, then.packets, ago),
        bytes(a_second(now.bytes, then.bytes, ago))
    )
}

fn a_second(now: u64, then: u64, ago: Duration) -> u64 {
    let milliseconds = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX).max(1);
    let since = now.checked_sub(then).unwrap_or(now);
    since.saturating_mul(1000) / milliseconds
}

/// What is not a number of the kernel's.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// The digest of the policy in force.
    pub policy: Option<&'a str>,
    /// Whether everything is in place.
    pub in_sync: bool,
    /// How many objects are missing, changed or left over.
    pub drift: usize,
    /// What keeps sessions from their way.
    pub troubles: &'a [&'a Finding],
    /// The legs of each redirect, as the kernel answers.
    pub sessions: &'a [SessionReport],
}

/// For `node_exporter`'s textfile collector (the text format of Prometheus, version 0.0.4).
#[must_use]
#[expect(clippy::too_many_lines, reason = "one call a metric, nothing else")]
pub fn prometheus(state: State<'_>, numbers: &Numbers) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        if samples.is_empty() {
            return;
        }
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let policy = state.policy.unwrap_or_default();
    metric(
        "redirect_policy_info",
        "gauge",
        "The policy in force, by the digest of its text; 0 if none is.",
        vec![(
            label(&[("digest", policy)]),
            u64::from(state.policy.is_some()),
        )],
    );
    metric(
        "redirect_in_sync",
        "gauge",
        "1 if everything that was applied is in place, and nothing keeps sessions from their way.",
        vec![(String::new(), u64::from(state.in_sync))],
    );
    let drift = u64::try_from(state.drift).unwrap_or(u64::MAX);
    metric(
        "redirect_drift_objects",
        "gauge",
        "Objects that are missing, changed or left over.",
        vec![(String::new(), drift)],
    );
    let troubles = u64::try_from(state.troubles.len()).unwrap_or(u64::MAX);
    metric(
        "redirect_troubles",
        "gauge",
        "What others on this router do that keeps sessions from their way, as `redirect status` tells it.",
        vec![(String::new(), troubles)],
    );
    let mut legs: BTreeMap<(&str, &str, usize), bool> = BTreeMap::new();
    for session in state.sessions {
        let family = family_label(session.session.family);
        for leg in &session.legs {
            let goes = legs
                .entry((&session.redirect, family, leg.leg.number()))
                .or_insert(true);
            *goes &= leg.outcome != Outcome::Astray;
        }
    }
    metric(
        "redirect_leg_ok",
        "gauge",
        "1 if packets of this leg go where they should, by all client interfaces.",
        legs.into_iter()
            .map(|((redirect, family, leg), goes)| {
                let leg = leg.to_string();
                let labels = [("redirect", redirect), ("family", family), ("leg", &leg)];
                (label(&labels), u64::from(goes))
            })
            .collect(),
    );
    let sessions = numbers.redirects.iter().flat_map(|found| {
        let sample = |from, count| {
            let labels = label(&[("redirect", &found.redirect), ("from", from)]);
            (labels, count)
        };
        let dialled = found.dialled.map(|count| sample("appliance", count));
        [sample("clients", found.taken)].into_iter().chain(dialled)
    });
    metric(
        "redirect_sessions_total",
        "counter",
        "Sessions that a redirect took, by who opened the connection.",
        sessions.collect(),
    );
    let connections = numbers.redirects.iter().flat_map(|found| {
        found
            .connections
            .iter()
            .flatten()
            .map(|(appliance, count)| {
                let labels = [("redirect", &*found.redirect), ("appliance", appliance)];
                (label(&labels), u64::try_from(*count).unwrap_or(u64::MAX))
            })
    });
    metric(
        "redirect_connections",
        "gauge",
        "Open connections of a redirect, by the appliance that they go through.",
        connections.collect(),
    );
    for (name, help, of) in [
        (
            "redirect_sent_packets_total",
            "Packets that went to the appliance.",
            (|found| found.sent.packets) as fn(&ApplianceNumbers) -> u64,
        ),
        (
            "redirect_sent_bytes_total",
            "Bytes of these packets, IP headers included.",
            |found| found.sent.bytes,
        ),
        (
            "redirect_sealed_packets_total",
            "Packets that would have passed the appliance by, and were refused.",
            |found| found.sealed.packets,
        ),
        (
            "redirect_sealed_bytes_total",
            "Bytes of these packets.",
            |found| found.sealed.bytes,
        ),
    ] {
        let samples = numbers
            .appliances
            .iter()
            .map(|found| (label(&[("appliance", &found.appliance)]), of(found)));
        metric(name, "counter", help, samples.collect());
    }
    let hops = numbers.appliances.iter().flat_map(|found| {
        found.next_hops.iter().filter_map(|hop| {
            let labels = [
                ("appliance", found.appliance.as_str()),
                ("family", family_label(Family::of(hop.address))),
            ];
            Some((label(&labels), u64::from(hop.usable?)))
        })
    });
    metric(
        "redirect_next_hop_usable",
        "gauge",
        "1 if the kernel knows the appliance as a neighbour; absent while it has not asked.",
        hops.collect(),
    );
    text
}

fn family_label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn label(labels: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| {
            let value = value
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, Source};

    fn policy() -> Policy {
        let text = r#"
            version = 1
            [appliance.scb]
            address = ["10.30.0.2", "fd00:30::2"]
            interface = "sps0"
            [[redirect]]
            name = "rdp"
            client_interface = ["eth0", "ppp*"]
            server_network = ["10.20.0.0/24", "10.21.0.0/24", "fd00:20::/64", "fd00:21:1::/64"]
            port = [3389, "5900-5910"]
            snat = true
        "#;
        let source = Source {
            name: "policy.toml".to_owned(),
            text: text.to_owned(),
            lists: Vec::new(),
            unreadable: Vec::new(),
        };
        policy::read(&source).unwrap().policy
    }

    fn numbers(packets: u64) -> Numbers {
        let some = |packets| Traffic {
            packets,
            bytes: packets * 1500,
        };
        Numbers {
            redirects: vec![RedirectNumbers {
                redirect: "rdp".to_owned(),
                taken: packets / 10,
                dialled: Some(packets / 20),
                connections: Some([("scb".to_owned(), 2), ("old".to_owned(), 1)].into()),
            }],
            appliances: vec![ApplianceNumbers {
                appliance: "scb".to_owned(),
                sent: some(packets),
                sealed: some(3),
                next_hops: vec![
                    NextHop {
                        address: "10.30.0.2".parse().unwrap(),
                        interface: "sps0".to_owned(),
                        state: Some("reachable".to_owned()),
                        usable: Some(true),
                    },
                    NextHop {
                        address: "fd00:30::2".parse().unwrap(),
                        interface: "sps0".to_owned(),
                        state: None,
                        usable: None,
                    },
                ],
            }],
        }
    }

    fn session() -> SessionReport {
        let leg = |leg, outcome, because| LegReport {
            leg,
            input: "eth0".to_owned(),
            from: "10.10.0.2".to_owned(),
            to: "10.20.0.2".to_owned(),
            mark: None,
            expected: "dev eth1".to_owned(),
            kernel: "dev eth2".to_owned(),
            outcome,
            because,
        };
        SessionReport {
            redirect: "rdp".to_owned(),
            session: legs::Session {
                redirect: 0,
                family: Family::V4,
                client_interface: "eth0".parse().unwrap(),
                client: "10.10.0.2".parse().unwrap(),
                client_port: 40000,
                server: "10.20.0.2".parse().unwrap(),
                port: 3389,
            },
            legs: vec![
                leg(legs::Number::ClientToAppliance, Outcome::AsExpected, None),
                leg(
                    legs::Number::ApplianceToServer,
                    Outcome::Astray,
                    Some("leg-astray"),
                ),
            ],
        }
    }

    #[test]
    fn a_drained_redirect_takes_no_new_sessions() {
        let mut draining = policy();
        for redirect in &mut draining.redirects {
            redirect.client_interfaces.clear();
        }
        let picture = picture(&draining, &[], &numbers(1000), None, false);
        assert!(
            picture
                .starts_with("\nredirect `rdp`\n  no new sessions (draining) ──► scb on sps0 ──► "),
            "{picture}"
        );
    }

    #[test]
    fn the_picture() {
        let before = numbers(1000);
        let ago = Duration::from_secs(2);
        assert_eq!(
            picture(&policy(), &[session()], &numbers(2000), Some((&before, ago)), false),
            "
redirect `rdp`
  clients on eth0, ppp* ──► scb on sps0 ──► 10.20.0.0/24, 10.21.0.0/24, fd00:20::/64 and 1 more port 3389, 5900-5910
  legs, IPv4           1 ok   2 ASTRAY   3 not asked   4 not asked
    leg 2, appliance to server, in on eth0: wanted dev eth1, the kernel says dev eth2 (leg-astray)
  sessions taken              200        50/s
  dialled on                  100        25/s
  connections                   2 open, 1 still through old

appliance `scb`
  next hop             10.30.0.2 dev sps0: reachable
  next hop             fd00:30::2 dev sps0: not asked lately
  sent to it                 2000 packets      3.0 MB       500 packets/s    750.0 kB/s
  sealed off                    3 packets      4.5 kB         0 packets/s         0 B/s
"
        );
    }

    #[test]
    fn metrics() {
        let state = State {
            policy: Some("ab12"),
            in_sync: false,
            drift: 2,
            troubles: &[],
            sessions: &[session()],
        };
        let text = prometheus(state, &numbers(20));
        for line in [
            "redirect_policy_info{digest=\"ab12\"} 1",
            "redirect_in_sync 0",
            "redirect_drift_objects 2",
            "redirect_sessions_total{redirect=\"rdp\",from=\"clients\"} 2",
            "redirect_sessions_total{redirect=\"rdp\",from=\"appliance\"} 1",
            "redirect_sent_bytes_total{appliance=\"scb\"} 30000",
            "redirect_troubles 0",
            "redirect_leg_ok{redirect=\"rdp\",family=\"ipv4\",leg=\"1\"} 1",
            "redirect_leg_ok{redirect=\"rdp\",family=\"ipv4\",leg=\"2\"} 0",
            "redirect_connections{redirect=\"rdp\",appliance=\"scb\"} 2",
            "redirect_connections{redirect=\"rdp\",appliance=\"old\"} 1",
            "redirect_sealed_packets_total{appliance=\"scb\"} 3",
            "redirect_next_hop_usable{appliance=\"scb\",family=\"ipv4\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("ipv6"), "nobody knows");
        // Every metric is said what it is, once.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1);
        }
        assert_eq!(label(&[("a", "b\"\\\n")]), r#"{a="b\"\\\n"}"#);
    }
}
