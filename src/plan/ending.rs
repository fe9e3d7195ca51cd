//! What a change of policy means for sessions that run.
//!
//! A session is never handed from one appliance to another, nor to its server, in mid-stream:
//! neither could go on with it. What the next policy takes to the same appliance goes on by
//! itself. What it does not is kept until it ends: the redirect without its clients, so that
//! nothing new is taken, and the appliance with all that leads to it.

use std::net::IpAddr;

use crate::policy::{Appliance, Name, Policy, Redirect};

/// A session, as connection tracking has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Who opened it.
    pub client: IpAddr,
    /// To whom.
    pub server: IpAddr,
    /// The server's TCP port.
    pub port: u16,
    /// The connection's mark.
    pub mark: u32,
}

/// Why sessions cannot be kept under the next policy, and what would let them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// What is in the way.
    pub message: String,
    /// What to change in the policy.
    pub hint: String,
}

/// Whether all sessions of `redirect`, one of `before`, go on under `after`, whatever they are.
#[must_use]
pub fn goes_on(before: &Policy, redirect: &Redirect, after: &Policy) -> bool {
    let Some(appliance) = before.appliance_of(redirect) else {
        return true;
    };
    heirs(appliance, redirect, after).any(|heir| {
        redirect.servers.without(&heir.servers).is_empty()
            && redirect.ports.without(&heir.ports).is_empty()
            && (heir.except_clients)
                .without(&redirect.except_clients)
                .is_empty()
    })
}

/// The redirect of `before` (by index) that `session` goes through and that `after` leaves behind.
#[must_use]
pub fn left_behind(before: &Policy, after: &Policy, session: &Session) -> Option<usize> {
    let borne = before.redirects.iter().enumerate().filter(|(_, redirect)| {
        (before.appliance_of(redirect)).is_some_and(|one| one.mark.is_borne_by(session.mark))
    });
    let covers = |redirect: &Redirect| {
        redirect.servers.contains(session.server) && redirect.ports.contains(session.port)
    };
    // One that no redirect of its appliance covers is of a policy before: any keeps it.
    let (index, redirect) = (borne.clone())
        .find(|(_, redirect)| covers(redirect))
        .or_else(|| borne.clone().next())?;
    let appliance = before.appliance_of(redirect)?;
    let goes_on = heirs(appliance, redirect, after)
        .any(|heir| covers(heir) && !heir.except_clients.contains(session.client));
    (!goes_on).then_some(index)
}

/// The redirects of `after` by which sessions of `redirect` can go on where they go now.
fn heirs<'p>(
    appliance: &'p Appliance,
    redirect: &'p Redirect,
    after: &'p Policy,
) -> impl Iterator<Item = &'p Redirect> {
    after.redirects.iter().filter(move |heir| {
        (after.appliance_of(heir)).is_some_and(|other| is_reached_alike(appliance, other))
            && (heir.snat || !redirect.snat)
    })
}

/// Whether what goes to `before` now is taken to the same place by what leads to `after`.
fn is_reached_alike(before: &Appliance, after: &Appliance) -> bool {
    let mut addresses = before.addresses.iter();
    before.mark == after.mark
        && before.interface == after.interface
        && addresses.all(|address| after.addresses.contains(address))
}

/// `after`, and these redirects of `before` (by name) for the sessions that they have.
///
/// # Errors
/// If something of `after` is in the way; then those sessions cannot go on.
pub fn keeping(mut after: Policy, before: &Policy, redirects: &[Name]) -> Result<Policy, Clash> {
    let kept = (before.redirects.iter()).filter(|redirect| redirects.contains(&redirect.name));
    for redirect in kept {
        let Some(appliance) = before.appliance_of(redirect) else {
            continue;
        };
        let alike = |other: &Appliance| is_reached_alike(appliance, other);
        let index = if let Some(index) = after.appliances.iter().position(alike) {
            index
        } else {
            fits(&after, before, redirect, appliance)?;
            after.appliances.push(appliance.clone());
            after.appliances.len() - 1
        };
        after.redirects.push(Redirect {
            name: unused_name(&after, &redirect.name),
            appliance: index,
            ..redirect.without_clients()
        });
    }
    Ok(after)
}

/// Whether `appliance` of `before` can stand beside those of `after`.
fn fits(
    after: &Policy,
    before: &Policy,
    redirect: &Redirect,
    appliance: &Appliance,
) -> Result<(), Clash> {
    let clash = |message, hint| Err(Clash { message, hint });
    let (old, new) = (before.options.mark_mask, after.options.mark_mask);
    if old != new {
        return clash(
            format!("`mark_mask` changes from {old:#x} to {new:#x}"),
            format!("keep `mark_mask = {old:#x}` until they have ended"),
        );
    }
    let name = &appliance.name;
    for other in &after.appliances {
        let its_own =
            |what: &str| format!("write a `{what}` of its own in [appliance.{}]", other.name);
        if other.name == *name {
            let is = |one: &Appliance| {
                let addresses: Vec<String> =
                    one.addresses.iter().map(ToString::to_string).collect();
                format!("{} on `{}`", addresses.join(", "), one.interface)
            };
            if is(other) == is(appliance) {
                let (old, new) = (appliance.mark.value, other.mark.value);
                return clash(
                    format!("`{name}` changes its mark from {old} to {new}"),
                    format!(
                        "write `mark = {old}` and `table = {}` in [appliance.{name}], as they are now",
                        appliance.table
                    ),
                );
            }
            return clash(
                format!("`{name}` moves from {} to {}", is(appliance), is(other)),
                format!("give [appliance.{name}] another name, `mark` and `table` than it has now"),
            );
        }
        if other.mark == appliance.mark {
            return clash(
                format!("`{}` takes over its mark {}", other.name, other.mark.value),
                its_own("mark"),
            );
        }
        if other.table == appliance.table {
            return clash(
                format!("`{}` takes over its table {}", other.name, other.table),
                its_own("table"),
            );
        }
        let is_told_apart = !other.macs.is_empty() && !appliance.macs.is_empty();
        if redirect.snat && other.interface == appliance.interface && !is_told_apart {
            return clash(
                format!(
                    "`{}` is on `{}` as well, and the router cannot tell the two apart",
                    other.name, other.interface
                ),
                "give both their MAC addresses: `mac = \"…\"`".to_owned(),
            );
        }
    }
    Ok(())
}

/// `name`, or one like it that no redirect of `policy` has.
fn unused_name(policy: &Policy, name: &Name) -> Name {
    let is_unused = |name: &Name| policy.redirects.iter().all(|other| other.name != *name);
    let numbered = (1..).filter_map(|number: usize| {
        let suffix = format!(".old{number}");
        let stem: String = (name.as_str().chars())
            .take(Name::MAX.saturating_sub(suffix.len()))
            .collect();
        Name::new(&(stem + &suffix)).ok()
    });
    std::iter::once(name.clone())
        .chain(numbered)
        .find(is_unused)
        .unwrap_or_else(|| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Connection, Model, Packet};
    use crate::test_support::policy;

    const A: &str = "[appliance.a]\naddress = \"10.30.0.2\"\ninterface = \"sps0\"\n";
    const B: &str =
        "[appliance.b]\naddress = \"10.31.0.2\"\ninterface = \"sps1\"\ntable = 104\nmark = 2\n";

    fn redirect(name: &str, appliance: &str, network: &str, more: &str) -> String {
        format!(
            "[[redirect]]\nname = \"{name}\"\nappliance = \"{appliance}\"\nclient_interface = \"eth0\"\n\
             server_network = \"{network}\"\nport = 3389\nsnat = false\n{more}\n"
        )
    }

    fn of(parts: &[&str]) -> Policy {
        policy(&format!("version = 1\n{}", parts.concat()))
    }

    fn session(server: &str, mark: u32) -> Session {
        Session {
            client: "10.10.0.2".parse().unwrap(),
            server: server.parse().unwrap(),
            port: 3389,
            mark,
        }
    }

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name::new(name).unwrap()).collect()
    }

    /// The mark that the next packet of a client's session gets.
    fn next_mark(policy: &Policy, session: &Session, connection: Connection) -> u32 {
        let packet = Packet {
            input: crate::net::IfName::new("eth0").unwrap(),
            mac: None,
            source: session.client,
            destination: session.server,
            ports: Some((50_000, session.port)),
            flags: match connection {
                Connection::New(_) => Packet::SYN,
                _ => Packet::ACK,
            },
            connection,
            mark: 0,
        };
        Model::new(policy).prerouting(&packet).mark
    }

    #[test]
    fn what_still_goes_to_the_same_appliance_goes_on() {
        let near = redirect("near", "a", "10.20.0.0/24", "");
        let before = of(&[A, &near]);
        let of_near = before.redirects.first().unwrap();
        let wider = redirect("all", "a", "10.20.0.0/16", "");
        for (after, all_go_on, this_one_ends) in [
            (of(&[A, &near]), true, None),
            // Whatever it is called.
            (of(&[A, &wider]), true, None),
            (
                of(&[B, &redirect("near", "b", "10.20.0.0/24", "")]),
                false,
                Some(0),
            ),
            (
                of(&[A, &redirect("near", "a", "10.20.0.128/25", "")]),
                false,
                Some(0),
            ),
            (
                of(&[A, &redirect("near", "a", "10.20.0.0/25", "")]),
                false,
                None,
            ),
            (
                of(&[
                    A,
                    &redirect("near", "a", "10.20.0.0/24", "except_client = \"10.10.0.2\""),
                ]),
                false,
                Some(0),
            ),
            (
                of(&[
                    A,
                    &redirect("near", "a", "10.20.0.0/24", "except_client = \"10.10.0.3\""),
                ]),
                false,
                None,
            ),
            (of(&[&A.replace("30", "32"), &near]), false, Some(0)),
        ] {
            assert_eq!(goes_on(&before, of_near, &after), all_go_on, "{after:#?}");
            let ends = left_behind(&before, &after, &session("10.20.0.2", 0x101));
            assert_eq!(ends, this_one_ends, "{after:#?}");
            assert_eq!(
                left_behind(&before, &after, &session("10.20.0.2", 0x100)),
                None
            );
        }
    }

    #[test]
    fn what_is_left_behind_ends_where_it_began_and_takes_nothing_new() {
        let before = of(&[
            A,
            B,
            &redirect("near", "a", "10.20.0.0/24", ""),
            &redirect("far", "b", "10.21.0.0/24", ""),
        ]);
        // The first appliance goes; the other takes what it had.
        let after = of(&[
            B,
            &redirect("near", "b", "10.20.0.0/24", ""),
            &redirect("far", "b", "10.21.0.0/24", ""),
        ]);
        let (old, new) = (session("10.20.0.2", 1), session("10.20.0.2", 0));
        assert_eq!(left_behind(&before, &after, &old), Some(0));
        let both = keeping(after.clone(), &before, &names(&["near"])).unwrap();
        let its_names: Vec<&str> = (both.redirects.iter())
            .map(|redirect| redirect.name.as_str())
            .collect();
        assert_eq!(its_names, ["near", "far", "near.old1"]);
        assert_eq!(next_mark(&both, &old, Connection::Known(1)), 1);
        assert_eq!(next_mark(&both, &new, Connection::New(0)), 2);
        // Without that, it would be handed over.
        assert_eq!(next_mark(&after, &old, Connection::Known(1)), 2);
    }

    #[test]
    fn what_cannot_stand_side_by_side_is_said() {
        let before = of(&[
            A,
            B,
            &redirect("near", "a", "10.20.0.0/24", ""),
            &redirect("far", "b", "10.21.0.0/24", ""),
        ]);
        let far = redirect("far", "b", "10.21.0.0/24", "");
        for (after, message, hint) in [
            (
                of(&[&B.replace("mark = 2", "mark = 1"), &far]),
                "`b` takes over its mark 1",
                "write a `mark` of its own in [appliance.b]",
            ),
            (
                of(&[&B.replace("104", "103"), &far]),
                "`b` takes over its table 103",
                "write a `table` of its own in [appliance.b]",
            ),
            (
                of(&[
                    &A.replace("10.30.0.2", "10.30.0.3"),
                    &redirect("near", "a", "10.20.0.0/24", ""),
                ]),
                "`a` moves from 10.30.0.2 on `sps0` to 10.30.0.3 on `sps0`",
                "give [appliance.a] another name, `mark` and `table` than it has now",
            ),
            (
                of(&[B, &far, "[options]\nmark_mask = 0xf\n"]),
                "`mark_mask` changes from 0xff to 0xf",
                "keep `mark_mask = 0xff` until they have ended",
            ),
        ] {
            let clash = keeping(after, &before, &names(&["near"])).unwrap_err();
            assert_eq!(
                (clash.message.as_str(), clash.hint.as_str()),
                (message, hint)
            );
        }
    }
}
