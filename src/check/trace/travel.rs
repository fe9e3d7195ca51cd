//! One packet of a session, taken through all packet rules.

use super::super::Case;
use super::super::foreign::walk::{self, Event, Traveller, What, Whither};
use super::super::foreign::{Effect, Hook, State, Step, Which};
use super::super::legs::{Asked, Leg, Number};
use super::super::packets::{OurRules, new_destination, place, traveller, with_ours};
use super::{Ending, Request, TraceLeg};

/// How a packet came out of all packet rules.
#[derive(Default)]
pub(super) struct Through {
    pub(super) mark: u32,
    pub(super) connection_mark: u32,
    /// What drops it, if anything does.
    pub(super) dropped: Option<(Ending, String)>,
    /// What sends it to the router itself, if anything does.
    pub(super) here: Option<String>,
    /// What hides the client from an appliance that must know it.
    pub(super) hidden: Option<String>,
}

pub(super) fn travel(
    case: &Case<'_>,
    request: &Request,
    asked: &Asked,
    leg: &Leg,
    connection: &mut Option<(State, u32)>,
    followed: &mut TraceLeg,
) -> Through {
    let is_first = connection.is_none();
    // An answer to what was not tracked fits no connection.
    let state = match *connection {
        None => State::New,
        Some((State::Untracked, _)) => State::Invalid,
        Some(_) => State::Established,
    };

    let made = traveller(
        case.policy,
        &asked.session,
        asked.server_interface.as_ref(),
        leg.number,
        state,
    );
    let Some(mut traveller) = made else {
        return Through::default();
    };
    if let Some((_, mark)) = *connection {
        traveller.connection_mark = mark;
    }
    if leg.number == Number::ClientToAppliance {
        // The session is one to wherever others send it, but our rules see what it was opened to.
        traveller.destination = request.server;
        traveller.ports = Some((request.client_port, request.port));
    }
    let rules = with_ours(case);
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    let mut pass = |hook, traveller: &mut Traveller, events: &mut Vec<_>| {
        walk::pass(&rules, hook, traveller, &mut ours, events)
    };
    let mut through = Through::default();
    let mut arrives = pass(Hook::Prerouting, &mut traveller, &mut events);
    // The route is chosen by the mark that it has here.
    through.mark = traveller.mark;
    through.connection_mark = traveller.connection_mark;
    if arrives && let Some((None, site)) = new_destination(case, &events) {
        through.here = Some(place(site, "sends it to the router itself"));
    }
    if arrives {
        traveller.output = Some(leg.expected.interface.clone());
        arrives = pass(Hook::Forward, &mut traveller, &mut events);
    }
    if !arrives {
        let by = events
            .iter()
            .rev()
            .find(|event| event.what == What::Dropped);
        through.dropped = Some(by.map_or_else(
            || (Ending::Hangs, "it is dropped".to_owned()),
            |event| (drop_ending(event), event_words(event).unwrap_or_default()),
        ));
    } else if is_first {
        let seen = events.len();
        pass(Hook::Postrouting, &mut traveller, &mut events);
        let source_nat = events
            .iter()
            .skip(seen)
            .find(|event| event.what == What::SourceNat);
        let snat = case
            .policy
            .redirects
            .get(asked.session.redirect)
            .is_some_and(|redirect| redirect.snat);
        through.hidden = source_nat
            .filter(|_| snat && leg.number == Number::ClientToAppliance)
            .and_then(event_words);
    }
    if is_first {
        *connection = Some((traveller.state, traveller.connection_mark));
    }
    followed.others = events.iter().filter_map(event_words).collect();
    through
}

/// Whether whoever sent it is told.
fn drop_ending(event: &Event<'_>) -> Ending {
    let rejects = event
        .site
        .rule
        .is_some_and(|rule| rule.steps.contains(&Step::Do(Effect::Reject)));
    if rejects {
        Ending::Refused
    } else {
        Ending::Hangs
    }
}

fn event_words(event: &Event<'_>) -> Option<String> {
    let what = match event.what {
        What::Marked {
            which, from, to, ..
        } => {
            let which = match which {
                Which::Packet => "packet",
                Which::Connection => "connection",
            };
            format!("changes the {which} mark from {from:#x} to {to:#x}")
        }
        What::Untracked => "takes it from connection tracking".to_owned(),
        What::Offloaded => "hands it to a flowtable".to_owned(),
        What::SourceNat => "rewrites its source".to_owned(),
        What::DestinationNat(Whither::To(to) | Whither::OneOf(to)) => {
            format!("rewrites its destination to {to}")
        }
        What::DestinationNat(Whither::Router) => {
            "rewrites its destination to the router itself".to_owned()
        }
        What::DestinationNat(Whither::Unknown) => "rewrites its destination".to_owned(),
        What::Dropped => "drops it".to_owned(),
        What::Doubt => return None,
    };
    let chain = event.site.chain.title();
    Some(match event.site.rule {
        Some(rule) => format!("{chain}: `{}` {what}", rule.text),
        None => format!("{chain}: its policy {what}"),
    })
}
