//! Rules that drop what fits no connection.

use super::super::foreign::walk::{self, Event, What};
use super::super::foreign::{Hook, Ruleset, State, Step, Test};
use super::super::legs::{Asked, Number};
use super::super::surroundings::BE_LIBERAL;
use super::super::{Case, Finding, Subject};
use super::OurRules;
use super::troubles::place;

/// An appliance that dials servers with the client's address *and port* makes two connections of a
/// session that are one and the same to connection tracking, which finds many of their packets
/// outside of the window then, and calls them invalid.
pub(super) fn dropped(case: &Case<'_>, rules: &Ruleset, asked: &Asked) -> Option<Finding> {
    let redirect = case.policy.redirects.get(asked.session.redirect)?;
    let appliance = case.policy.appliance_of(redirect)?;
    if !redirect.snat || case.setting(BE_LIBERAL) != Some(0) {
        return None;
    }
    Number::ALL.into_iter().find_map(|number| {
        let fits = pass(case, rules, asked, number, State::Established)?;
        let fits_not = pass(case, rules, asked, number, State::Invalid)?;
        let site = fits_not
            .iter()
            .find(|event| event.what == What::Dropped)?
            .site;
        // Whoever drops all packets of this leg is told of elsewhere, and a chain's policy says
        // nothing of packets that are invalid.
        let is_for_invalid = site.rule?.steps.iter().any(|step| {
            matches!(step, Step::If(Test::State(states)) if states.contains(&State::Invalid))
                || matches!(step, Step::Unless(Test::State(states)) if !states.contains(&State::Invalid))
        });
        if !is_for_invalid || fits.iter().any(|event| event.what == What::Dropped) {
            return None;
        }
        Some(
            Finding::warning("invalid-dropped", Subject::Appliance(appliance.name.to_string()))
                .found(format!(
                    "leg {}, {}, {}: {} where it fits no connection, and {BE_LIBERAL} is 0",
                    number.number(),
                    number.title(),
                    asked.session.family,
                    place(site, "drops it")
                ))
                .why("if the appliance dials servers with the client's own port, too, both connections of a session are one to connection tracking, which calls many of their packets invalid: sessions hang; an appliance that chooses its own ports has no such trouble")
                .owner(site.base.owner(site.rule).or(site.chain.owner(site.rule)))
                .mend(format!("sysctl -w {BE_LIBERAL}=1")),
        )
    })
}

/// What happens to a packet of a leg until it leaves.
fn pass<'r>(
    case: &Case<'_>,
    rules: &'r Ruleset,
    asked: &Asked,
    number: Number,
    state: State,
) -> Option<Vec<Event<'r>>> {
    let (way, mut traveller) = super::way(case, asked, number, state)?;
    let mut ours = OurRules::new(case.policy);
    let mut events = Vec::new();
    if walk::pass(
        rules,
        Hook::Prerouting,
        &mut traveller,
        &mut ours,
        &mut events,
    ) {
        traveller.output = way.output;
        walk::pass(rules, Hook::Forward, &mut traveller, &mut ours, &mut events);
    }
    Some(events)
}
