//! Routing rules of others, and what becomes of each leg.

use nix::errno::Errno;

use super::legs::{self, Asked, Leg};
use super::{
    Case, Explained, Finding, LegReport, Outcome, SessionReport, Subject, families, rules_after,
};
use crate::check::foreign;
use crate::kernel::route::{Answer, Way};
use crate::net::{Action, Family, Route, RouteKind, RouteProtocol, RoutingRule, TableId};
use crate::plan::Change;

pub(super) fn check(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    rules_before_ours(case, findings, explained);
    foreign_routes(case, findings, explained);
    same_bits(case, findings);
}

/// The routing rule of others by which the kernel routes a packet of `leg` that bears `mark`, if it
/// stands before ours.
fn catcher(case: &Case<'_>, asked: &Asked, leg: &Leg, mark: u32) -> Option<RoutingRule> {
    let redirect = case.policy.redirects.get(asked.session.redirect)?;
    let appliance = case.policy.appliance_of(redirect)?;
    let rules = if case.in_force {
        case.observed.rules.clone()
    } else {
        rules_after(case.observed, &case.planned.plan)
    };
    rules
        .into_iter()
        .filter(|rule| rule.family == asked.session.family)
        .take_while(|rule| {
            !(rule.protocol == RouteProtocol::OURS
                && rule.mark == Some(appliance.mark)
                && rule.action == Action::Lookup(appliance.table))
        })
        .filter(|rule| rule.protocol != RouteProtocol::OURS)
        .find(|rule| catches(rule, leg, mark, &case.surroundings.routes))
}

/// The same, if it is only for bits of the mark that are not ours.
pub(super) fn catcher_by_more_bits(
    case: &Case<'_>,
    asked: &Asked,
    leg: &Leg,
    mark: u32,
) -> Option<RoutingRule> {
    if mark == leg.question.mark || catcher(case, asked, leg, leg.question.mark).is_some() {
        return None;
    }
    catcher(case, asked, leg, mark)
}

/// A rule that stands before ours and leads a marked packet elsewhere.
fn rules_before_ours(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
        let Some(appliance) = case
            .policy
            .redirects
            .get(asked.session.redirect)
            .and_then(|redirect| case.policy.appliance_of(redirect))
        else {
            continue;
        };
        for leg in asked.legs.iter().filter(|leg| leg.question.mark != 0) {
            let Some(rule) = catcher(case, asked, leg, leg.question.mark) else {
                continue;
            };
            explained.insert(index, leg.number, "rule-before-ours");
            let flag = rule.family.ip_flag();
            let owner = rule.mark.and_then(|mark| foreign::owner_of_bits(mark.mask));
            let mend = match lower_than(rule.priority.0, case) {
                Some(priority) => {
                    case.file
                        .set_option("rule_priority", &priority.to_string(), case.in_force)
                }
                None => vec![format!("ip {flag} rule del {}", rule_words(&rule))],
            };
            findings.push(
                Finding::error("rule-before-ours", Subject::Appliance(appliance.name.to_string()))
                    .found(format!("the {} routing rule `{}` stands before ours, at priority {}", rule.family, rule_words(&rule), appliance.rule_priority))
                    .why(format!("packets from {} to {} that bear our mark follow it and not ours: they miss the appliance", leg.number.title().split(' ').next().unwrap_or_default(), leg.question.to))
                    .owner(owner)
                    .mends(mend),
            );
        }
    }
}

/// A route in one of our tables that somebody else put there. (Before apply, it is refused.)
fn foreign_routes(case: &Case<'_>, findings: &mut Vec<Finding>, explained: &mut Explained) {
    if !case.in_force {
        return;
    }
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        let foreign = case.observed.routes.iter().filter(|route| {
            route.table == appliance.table
                && route.family == family
                && route.protocol != RouteProtocol::OURS
        });
        for route in foreign {
            let words = route_words(route);
            findings.push(
                Finding::error("foreign-route", Subject::Appliance(appliance.name.to_string()))
                    .found(format!("the {family} route `{words}` stands in our table, and is not ours"))
                    .why("packets that bear our mark follow it where it fits better than ours, and miss the appliance")
                    .mend(format!("ip {} route del {words}", family.ip_flag())),
            );
        }
        for (at, asked) in case.surroundings.asked.iter().enumerate() {
            let is_its = asked.session.family == family
                && case
                    .policy
                    .redirects
                    .get(asked.session.redirect)
                    .is_some_and(|redirect| redirect.appliance == index);
            for leg in asked
                .legs
                .iter()
                .filter(|leg| is_its && leg.question.mark != 0)
            {
                let decides = found_in(
                    appliance.table,
                    leg.question.to,
                    family,
                    &case.observed.routes,
                );
                if decides.is_some_and(|route| route.protocol != RouteProtocol::OURS) {
                    explained.insert(at, leg.number, "foreign-route");
                }
            }
        }
    }
}

/// A route as `ip route` takes it.
#[must_use]
pub(super) fn route_words(route: &Route) -> String {
    let mut words = Vec::new();
    match route.kind {
        RouteKind::Unicast => {}
        RouteKind::Unreachable => words.push("unreachable".to_owned()),
        RouteKind::Other(6) => words.push("blackhole".to_owned()),
        RouteKind::Other(8) => words.push("prohibit".to_owned()),
        RouteKind::Other(THROW) => words.push("throw".to_owned()),
        RouteKind::Other(number) => words.push(format!("type {number}")),
    }
    words.push(
        route
            .destination
            .map_or_else(|| "default".to_owned(), |network| network.to_string()),
    );
    if let Some(via) = route.via {
        words.push(format!("via {via}"));
    }
    if let Some(interface) = &route.interface {
        words.push(format!("dev {interface}"));
    }
    words.push(format!("table {}", route.table));
    words.join(" ")
}

/// A priority for our first rule, so that all of ours stand before `theirs`.
pub(super) fn lower_than(theirs: u32, case: &Case<'_>) -> Option<u32> {
    let count = u32::try_from(case.policy.appliances.len()).ok()?;
    // Priority 0 is that of table `local`, which must stay first.
    theirs.checked_sub(count).filter(|priority| *priority > 0)
}

/// Whether `rule` decides the way of a packet of `leg` that bears `mark`.
fn catches(rule: &RoutingRule, leg: &Leg, mark: u32, routes: &[Route]) -> bool {
    let question = &leg.question;
    let selectors = &rule.selectors;
    let input = question.input.as_ref().map(|name| name.as_str().to_owned());
    let (source_port, destination_port) = question.tcp_ports.unwrap_or_default();
    let within = |range: Option<(u16, u16)>, port: u16| {
        range.is_none_or(|(first, last)| (first..=last).contains(&port))
    };
    let matches = rule
        .mark
        .is_none_or(|wanted| mark & wanted.mask == wanted.value)
        && selectors.source.is_none_or(|network| {
            question.from.is_some_and(|from| network.contains(&from))
        })
        && selectors
            .destination
            .is_none_or(|network| network.contains(&question.to))
        && (selectors.input.is_none() || selectors.input == input)
        // The router's own packets alone have an output interface before they are routed.
        && selectors.output.is_none()
        && selectors.tos == 0
        && selectors.ip_protocol.is_none_or(|protocol| protocol == 6)
        && within(selectors.source_port, source_port)
        && within(selectors.destination_port, destination_port)
        && selectors.others.is_empty();
    if matches == selectors.invert {
        return false;
    }
    match rule.action {
        // Goto leads to a rule that is looked at itself; nop does nothing.
        Action::Other(number) => number > 4,
        Action::Lookup(table) => {
            found_in(table, question.to, rule.family, routes).is_some_and(|route| {
                let length = route.destination.map_or(0, |network| network.prefix_len());
                selectors
                    .suppress_prefix_length
                    .is_none_or(|most| u32::from(length) > most)
                    && route.kind != RouteKind::Other(THROW)
                    && !leg.expected.is(&Way {
                        kind: route.kind,
                        via: route.via,
                        interface: route.interface.clone(),
                        table,
                    })
            })
        }
    }
}

/// `RTN_THROW`: on to the next rule.
const THROW: u8 = 9;

fn found_in(
    table: TableId,
    to: std::net::IpAddr,
    family: Family,
    routes: &[Route],
) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| route.family == family && route.table == table)
        .filter(|route| {
            route
                .destination
                .is_none_or(|network| network.contains(&to))
        })
        .max_by_key(|route| {
            let length = route.destination.map_or(0, |network| network.prefix_len());
            (length, std::cmp::Reverse(route.metric))
        })
}

/// A rule as `ip rule` takes it.
#[must_use]
pub(super) fn rule_words(rule: &RoutingRule) -> String {
    let selectors = &rule.selectors;
    let mut words = vec![format!("priority {}", rule.priority)];
    if selectors.invert {
        words.push("not".to_owned());
    }
    words.push(format!(
        "from {}",
        selectors
            .source
            .map_or_else(|| "all".to_owned(), |network| network.to_string())
    ));
    if let Some(network) = selectors.destination {
        words.push(format!("to {network}"));
    }
    if let Some(mark) = rule.mark {
        words.push(format!("fwmark {mark}"));
    }
    if let Some(input) = &selectors.input {
        words.push(format!("iif {input}"));
    }
    if let Some(output) = &selectors.output {
        words.push(format!("oif {output}"));
    }
    match rule.action {
        Action::Lookup(table) => words.push(format!("lookup {table}")),
        Action::Other(6) => words.push("blackhole".to_owned()),
        Action::Other(7) => words.push("unreachable".to_owned()),
        Action::Other(8) => words.push("prohibit".to_owned()),
        Action::Other(_) => {}
    }
    words.join(" ")
}

/// Others' routing rules that look at our bits of the mark.
fn same_bits(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for (index, family) in families(case.policy) {
        let Some(appliance) = case.policy.appliances.get(index) else {
            continue;
        };
        for rule in &case.observed.rules {
            let Some(mark) = rule
                .mark
                .filter(|_| rule.family == family && rule.protocol != RouteProtocol::OURS)
            else {
                continue;
            };
            let shared = mark.mask & appliance.mark.mask;
            // Can a packet bear both?
            let both = shared & (mark.value ^ appliance.mark.value) == 0;
            if shared == 0 || !both {
                continue;
            }
            findings.push(shared_bits(
                case,
                appliance,
                format!("the {family} routing rule `{}` looks at mark bits {shared:#x}, which are ours", rule_words(rule)),
                "packets that bear their mark may be taken for ours and led to the appliance, and ours for theirs",
                foreign::owner_of_bits(mark.mask),
            ));
        }
    }
}

/// A finding about mark bits that somebody else uses, with other bits for us.
pub(super) fn shared_bits(
    case: &Case<'_>,
    appliance: &crate::policy::Appliance,
    found: String,
    why: &str,
    owner: Option<&'static str>,
) -> Finding {
    let mut used = 0;
    for rule in &case.observed.rules {
        if rule.protocol != RouteProtocol::OURS {
            // One that looks at all bits means those in its value.
            used |= rule.mark.map_or(0, |mark| match mark.mask {
                u32::MAX => mark.value,
                mask => mask,
            });
        }
    }
    for rule in case
        .surroundings
        .rules
        .chains
        .iter()
        .filter(|chain| !chain.is_ours())
        .flat_map(|chain| &chain.rules)
    {
        for (keep, constant) in rule.marks() {
            // One that sets all bits means those in its value.
            used |= if keep == 0 { constant } else { !keep };
        }
    }
    let free = free_mask(used, case.policy.appliances.len());
    Finding::error(
        "mark-bits-shared",
        Subject::Appliance(appliance.name.to_string()),
    )
    .found(found)
    .why(why.to_owned())
    .owner(owner)
    .mends(
        case.file
            .set_option("mark_mask", &format!("{free:#x}"), case.in_force),
    )
}

/// A byte, or the largest part of one, that nobody uses, with room for `count` marks.
fn free_mask(used: u32, count: usize) -> u32 {
    [0xff00_0000_u32, 0x00ff_0000, 0x0000_ff00, 0x0000_00ff]
        .into_iter()
        .map(|byte| byte & !used)
        .filter(|mask| (1_usize << mask.count_ones()) > count)
        .max_by_key(|mask| mask.count_ones())
        .unwrap_or(u32::MAX)
}

/// What becomes of every leg; those that go astray without any finding so far get one.
pub(super) fn legs(
    case: &Case<'_>,
    findings: &mut Vec<Finding>,
    explained: &Explained,
) -> Vec<SessionReport> {
    let mut reports = Vec::new();
    let routes_drifted = |family: Family| {
        case.in_force
            && case.planned.plan.changes.iter().any(|change| match change {
                Change::Route { from, to } => {
                    from.iter().chain(to).any(|route| route.family == family)
                }
                Change::Rule { from, to } => {
                    from.iter().chain(to).any(|rule| rule.family == family)
                }
                _ => false,
            })
    };
    for (index, asked) in case.surroundings.asked.iter().enumerate() {
        let Some(redirect) = case.policy.redirects.get(asked.session.redirect) else {
            continue;
        };
        let mut report = SessionReport {
            redirect: redirect.name.to_string(),
            session: asked.session.clone(),
            legs: Vec::new(),
        };
        for leg in &asked.legs {
            let unmarked = leg.question.mark != 0 && packets_drifted(case);
            let is_there = |name: &crate::net::IfName| case.observed.link(name).is_some();
            let is_missing = !leg.question.input.as_ref().is_none_or(is_there)
                || !is_there(&leg.expected.interface);
            let mut because = explained
                .why(index, leg.number)
                .or(unmarked.then_some("drift"));
            let outcome = if because.is_some() {
                Outcome::Astray
            } else {
                outcome(case, leg)
            };
            if outcome == Outcome::Astray && because.is_none() {
                because = Some(if routes_drifted(asked.session.family) {
                    "drift"
                } else if is_missing {
                    "interface-missing"
                } else {
                    let finding = astray(case, asked, leg, &redirect.name.to_string());
                    let code = finding.code;
                    findings.push(finding);
                    code
                });
            }
            let shown = if outcome == Outcome::OnceApplied || unmarked {
                &leg.unmarked
            } else {
                &leg.answer
            };
            report.legs.push(LegReport {
                leg: leg.number,
                input: leg
                    .question
                    .input
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                from: leg
                    .question
                    .from
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
                to: leg.question.to.to_string(),
                mark: (leg.question.mark != 0).then(|| {
                    case.policy
                        .appliance_of(redirect)
                        .map_or_else(String::new, |appliance| appliance.mark.to_string())
                }),
                expected: legs::way_words(leg.expected.via, Some(&leg.expected.interface)),
                kernel: legs::words(shown),
                outcome,
                because,
            });
        }
        if asked.legs.len() < legs::Number::ALL.len() {
            let server = asked.session.server;
            findings.push(
                Finding::error(
                    "no-way-to-server",
                    Subject::Redirect(redirect.name.to_string()),
                )
                .found(format!(
                    "the router knows no way to {server}, a server of this redirect"
                ))
                .why("the appliance's packets to the server end here, and so does every session")
                .mend(format!(
                    "ip {} route get {server}",
                    asked.session.family.ip_flag()
                )),
            );
        }
        reports.push(report);
    }
    reports
}

/// Whether the policy is in force, and our packet rules are not as it wants them.
pub(super) fn packets_drifted(case: &Case<'_>) -> bool {
    let is_packets = |change: &Change| {
        matches!(
            change,
            Change::Nftables { .. } | Change::Ipset { .. } | Change::Iptables { .. }
        )
    };
    case.in_force && case.planned.plan.changes.iter().any(is_packets)
}

pub(super) fn outcome(case: &Case<'_>, leg: &Leg) -> Outcome {
    let goes = |answer: &Result<Answer, String>| matches!(answer, Ok(Answer::Route(way)) if leg.expected.is(way));
    if goes(&leg.answer) {
        return Outcome::AsExpected;
    }
    if case.in_force {
        return Outcome::Astray;
    }
    let filtered = matches!(
        &leg.unmarked,
        Ok(Answer::Refused(Errno::EINVAL | Errno::EXDEV))
    );
    // Refusals that the plan does away with: a strict filter on the appliance's interface.
    let passes = match &leg.unmarked {
        Ok(Answer::Route(_)) => true,
        _ if filtered => leg.question.input.as_ref().is_some_and(|input| {
            let planned = case.planned.plan.changes.iter().any(|change| {
                matches!(change, Change::Sysctl { sysctl, .. }
                    if sysctl.interface.as_ref() == Some(input))
            });
            planned && case.in_force_at(input, "rp_filter") != 1
        }),
        _ => false,
    };
    let leads = leg.question.mark != 0 || goes(&leg.plain);
    if passes && leads {
        Outcome::OnceApplied
    } else {
        Outcome::Astray
    }
}

fn astray(case: &Case<'_>, asked: &Asked, leg: &Leg, redirect: &str) -> Finding {
    let question = &leg.question;
    let number = leg.number.number();
    let title = leg.number.title();
    let expected = legs::way_words(leg.expected.via, Some(&leg.expected.interface));
    let answer = if case.in_force {
        &leg.answer
    } else {
        &leg.unmarked
    };
    let words = legs::words(answer);
    let input = question
        .input
        .as_ref()
        .map_or_else(String::new, |input| format!(" iif {input}"));
    let mark = if question.mark == 0 {
        String::new()
    } else {
        format!(" mark {:#x}", question.mark)
    };
    let from = question
        .from
        .map_or_else(String::new, |from| format!(" from {from}"));
    let get = format!(
        "ip {} route get {}{from}{input}{mark}",
        asked.session.family.ip_flag(),
        question.to
    );
    let base = Finding::error("leg-astray", Subject::Redirect(redirect.to_owned())).found(format!(
        "leg {number}, {title}: expected {expected}, the kernel says {words}"
    ));
    match answer {
        Ok(Answer::Refused(Errno::EINVAL | Errno::EXDEV)) => {
            let interface = question
                .input
                .as_ref()
                .map_or_else(String::new, ToString::to_string);
            Finding {
                code: "reverse-path",
                ..base
            }
            .why(format!("the kernel drops packets from {} that come in on `{interface}`: they are not expected there", question.from.map_or_else(String::new, |from| from.to_string())))
            .mend(format!("sysctl -w net/ipv4/conf/{interface}/rp_filter=2"))
        }
        // Not even drift: what it is, the kernel's own answer shows.
        _ => base
            .why("these packets of every session go another way, or nowhere")
            .mend(get),
    }
}
