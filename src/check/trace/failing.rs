//! Why a session fails that a redirect takes.

use nix::errno::Errno;

use super::super::legs::{self, Asked, Leg, Number};
use super::super::{Case, Outcome, routing};
use super::travel::Through;
use super::{Ending, Failing};
use crate::kernel::route::Answer;
use crate::policy::Redirect;
use crate::rules::Model;

/// What keeps a leg's packet from its way, and what that means for the session; in the order in
/// which the packet meets it.
pub(super) fn failing(
    case: &Case<'_>,
    redirect: &Redirect,
    asked: &Asked,
    leg: &Leg,
    through: &Through,
    outcome: Outcome,
) -> Option<Failing> {
    among_rules(case, redirect, leg, through)
        .or_else(|| on_its_route(case, asked, leg, through, outcome))
}

/// Where a packet goes that should go to the appliance, and does not.
fn past(leg: &Leg) -> (Ending, &'static str) {
    if leg.number == Number::ClientToAppliance {
        (Ending::Leaks, "it goes to its server directly")
    } else {
        (
            Ending::Hangs,
            "it goes to the client directly, and the appliance waits for it",
        )
    }
}

/// What packet rules do to it.
fn among_rules(
    case: &Case<'_>,
    redirect: &Redirect,
    leg: &Leg,
    through: &Through,
) -> Option<Failing> {
    let fails = |ending, because: &str| {
        let because = because.to_owned();
        Some(Failing { ending, because })
    };
    let should = leg.question.mark != 0;
    let past = past(leg);
    if routing::packets_drifted(case) {
        return fails(
            past.0,
            "our packet rules are not as they were applied; `redirect repair` puts them back",
        );
    }
    if let Some((ending, by)) = &through.dropped {
        return fails(*ending, by);
    }
    if let Some(by) = &through.here {
        let ending = match leg.number {
            Number::ClientToAppliance => Ending::Ends,
            _ => Ending::Hangs,
        };
        return fails(ending, by);
    }
    let mark = case.policy.appliance_of(redirect)?.mark;
    let bears = mark.is_borne_by(through.mark);
    if bears && !should {
        return fails(
            Ending::Hangs,
            "it comes from the appliance and bears its mark, so it is sent back there, in circles",
        );
    }
    if should && !bears {
        let is_held =
            Model::new(case.policy).is_sealed() && mark.is_borne_by(through.connection_mark);
        return if is_held {
            let because = "it has lost its mark when its route is chosen; the seal, which knows its connection's, refuses it";
            fails(Ending::Refused, because)
        } else {
            fails(
                past.0,
                &format!(
                    "it has lost its mark when its route is chosen, and its connection's, too: {}",
                    past.1
                ),
            )
        };
    }
    None
}

/// What the routing rules and routes do to it.
fn on_its_route(
    case: &Case<'_>,
    asked: &Asked,
    leg: &Leg,
    through: &Through,
    outcome: Outcome,
) -> Option<Failing> {
    let fails = |ending, because: &str| {
        let because = because.to_owned();
        Some(Failing { ending, because })
    };
    let family = asked.session.family;
    let question = &leg.question;
    let input = question.input.as_ref()?;
    let should = question.mark != 0;
    let past = past(leg);
    let is_sealed = Model::new(case.policy).is_sealed();
    if let Some(rule) = routing::catcher_by_more_bits(case, asked, leg, through.mark) {
        let ending = match (should, is_sealed) {
            (true, true) => Ending::Refused,
            (true, false) => past.0,
            (false, _) => Ending::Hangs,
        };
        return fails(
            ending,
            &format!(
                "it bears the mark {:#x}, by which the {family} routing rule `{}` takes it before ours",
                through.mark,
                routing::rule_words(&rule)
            ),
        );
    }
    if !case.surroundings.forwards(family, input) {
        return fails(
            Ending::Hangs,
            &format!("the router forwards no {family} packets that come in on `{input}`"),
        );
    }
    if outcome != Outcome::Astray {
        return through.hidden.as_ref().and_then(|by| {
            fails(
                Ending::Hangs,
                &format!("{by}: the appliance dials the server with the router's own address, and the router drops that"),
            )
        });
    }
    let expected = legs::way_words(leg.expected.via, Some(&leg.expected.interface));
    match &leg.answer {
        Ok(Answer::Refused(Errno::EINVAL | Errno::EXDEV)) => fails(
            Ending::Hangs,
            &format!(
                "the reverse path filter drops it: {} is not expected to come in on `{input}` (rp_filter)",
                question
                    .from
                    .map_or_else(|| "its source".to_owned(), |from| from.to_string())
            ),
        ),
        Ok(Answer::Route(way)) => {
            let way_there = legs::way_words(way.via, way.interface.as_ref());
            let leaves = way.interface.as_ref() != Some(&leg.expected.interface);
            match (should && leaves, is_sealed) {
                (true, true) => fails(
                    Ending::Refused,
                    &format!("it is routed {way_there} instead of {expected}; the seal refuses it"),
                ),
                (true, false) => fails(
                    past.0,
                    &format!("it is routed {way_there} instead of {expected}"),
                ),
                (false, _) => fails(
                    Ending::Hangs,
                    &format!("it is routed {way_there} instead of {expected}"),
                ),
            }
        }
        Ok(Answer::Refused(_)) if should => fails(
            Ending::Refused,
            "no route leads to the appliance (its link is down, or its route is gone), so it is refused",
        ),
        Ok(Answer::Refused(_)) => fails(
            Ending::Refused,
            &format!("the router has no route to {}", question.to),
        ),
        Err(reason) => fails(
            Ending::Hangs,
            &format!("the kernel could not be asked: {reason}"),
        ),
    }
}
