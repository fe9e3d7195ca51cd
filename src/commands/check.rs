//! `redirect check`: is the policy sound on this router, before apply or after.

use std::net::SocketAddr;

use serde_json::json;

use super::Typed;
use super::look::{Seen, named_or_in_force};
use crate::check::text::{self, Emphasis};
use crate::check::{self, Probe};
use crate::cli::Check;
use crate::failure::{Exit, Failure};
use crate::kernel::probe;
use crate::net::Family;
use crate::render::json;
use crate::terminal::{Style, Terminal, paint};

pub(super) fn run(args: &Check, terminal: &Terminal) -> Result<Exit, Failure> {
    let Typed { policy, source, .. } = named_or_in_force(&args.policy, terminal)?;
    let mut seen = Seen::of(policy, &source)?;
    if args.probe {
        let probes = try_appliances(&seen)?;
        seen.look_again()?;
        seen.surroundings.probes = probes;
    }
    let report = check::check(&seen.case());
    let exit = if report.is_lacking() {
        Exit::Lacking
    } else if report.is_sound() {
        Exit::Done
    } else {
        Exit::Pending
    };
    if args.json {
        terminal.data(&json::pretty(&json!({
            "version": json::VERSION,
            "sound": report.is_sound(),
            "in_force": report.in_force,
            "findings": report.findings,
            "sessions": report.sessions,
            "probes": report.probes,
            "not_checked": report.not_checked,
        })))?;
        return Ok(exit);
    }
    let colour = terminal.colour_out();
    terminal.data(&text::report(&report, &|emphasis, text| {
        paint(colour, style(emphasis), text)
    }))?;
    Ok(exit)
}

pub(super) fn style(emphasis: Emphasis) -> Style {
    match emphasis {
        Emphasis::Error => Style::Error,
        Emphasis::Warning => Style::Warning,
        Emphasis::Good => Style::Good,
        Emphasis::Heading => Style::Bold,
        Emphasis::Quiet => Style::Dim,
    }
}

/// Sends each appliance an echo and, where the policy is in force, opens a session through it.
fn try_appliances(seen: &Seen) -> Result<Vec<Probe>, Failure> {
    let policy = &seen.policy;
    let mut probes = Vec::new();
    for (index, appliance) in policy.appliances.iter().enumerate() {
        for family in Family::ALL {
            let (Some(address), true) = (appliance.address(family), policy.uses(index, family))
            else {
                continue;
            };
            let echo = probe::echo(address, &appliance.interface);
            if let Err(error) = &echo
                && error.kind() == std::io::ErrorKind::PermissionDenied
            {
                return Err(Failure::new(
                    Exit::NotPermitted,
                    "`--probe` sends packets that only root may send",
                )
                .hint("run it as root, or without `--probe`"));
            }
            let mut servers: Vec<SocketAddr> = seen
                .surroundings
                .asked
                .iter()
                .map(|asked| &asked.session)
                .filter(|session| {
                    let redirect = policy.redirects.get(session.redirect);
                    seen.in_force
                        && session.family == family
                        && redirect.is_some_and(|redirect| redirect.appliance == index)
                })
                .map(|session| SocketAddr::new(session.server, session.port))
                .collect();
            servers.dedup();
            let sessions = servers
                .into_iter()
                .map(|to| {
                    let answer = probe::session(to, appliance.mark);
                    (to, answer.map_err(|error| error.to_string()))
                })
                .collect();
            probes.push(Probe {
                appliance: appliance.name.to_string(),
                address,
                echo: echo.map_err(|error| error.to_string()),
                sessions,
            });
        }
    }
    Ok(probes)
}
