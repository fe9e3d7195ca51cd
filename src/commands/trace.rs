//! `redirect trace`: what becomes of one session.

use super::Typed;
use super::check::style;
use super::look::{Seen, named_or_in_force};
use crate::check::trace::{self, Fate, Request, Trace as Traced};
use crate::check::{Backend, Case, PolicyFile, Surroundings, legs};
use crate::cli::Trace;
use crate::failure::{Exit, Failure};
use crate::kernel::route::{Answer, Question, Way};
use crate::kernel::router::Router;
use crate::net::{Family, IfName, IfPattern, RouteKind, TableId};
use crate::observation::Observed;
use crate::plan::Ledger;
use crate::plan::planner::{self, Stage};
use crate::policy::Policy;
use crate::render::json;
use crate::terminal::{Terminal, paint};

pub(super) fn run(args: &Trace, terminal: &Terminal) -> Result<Exit, Failure> {
    if Family::of(args.from.0) != Family::of(args.to.ip()) {
        return Err(Failure::new(
            Exit::Usage,
            "`--from` and `--to` are of two address families",
        ));
    }
    let Typed { policy, source, .. } = named_or_in_force(&args.policy, terminal)?;
    let traced = if args.offline.offline {
        offline(args, &policy)?
    } else {
        let seen = Seen::of(policy, &source)?;
        online(args, &seen)?
    };
    if args.json {
        let value = serde_json::to_value(&traced)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        terminal.data(&json::pretty(&value))?;
    } else {
        let colour = terminal.colour_out();
        terminal.data(&trace::text(&traced, &|emphasis, text| {
            paint(colour, style(emphasis), text)
        }))?;
    }
    Ok(match traced.fate {
        Fate::Redirected { .. } => Exit::Done,
        Fate::Broken { .. } | Fate::Direct { .. } => Exit::Pending,
    })
}

fn request(args: &Trace, input: IfName) -> Request {
    Request {
        client: args.from.0,
        client_port: args.from.1.unwrap_or(legs::CLIENT_PORT),
        server: args.to.ip(),
        port: args.to.port(),
        input,
    }
}

fn online(args: &Trace, seen: &Seen) -> Result<Traced, Failure> {
    let mut router = Router::open()?;
    let mut lookup = |question: &Question| {
        router
            .routing()
            .lookup(question)
            .map_err(|error| error.to_string())
    };
    let input = match &args.input {
        Some(input) if seen.observed.link(input).is_none() => {
            return Err(Failure::new(
                Exit::Usage,
                format!("there is no interface `{input}` on this router"),
            ));
        }
        Some(input) => input.clone(),
        None => {
            let question = Question {
                to: args.from.0,
                from: None,
                input: None,
                mark: 0,
                tcp_ports: None,
            };
            match lookup(&question) {
                Ok(Answer::Route(Way {
                    kind: RouteKind::Unicast,
                    interface: Some(interface),
                    ..
                })) => interface,
                answer => {
                    return Err(Failure::new(
                        Exit::Usage,
                        format!(
                            "where {} comes in cannot be told: the way to it is {}",
                            args.from.0,
                            legs::words(&answer)
                        ),
                    )
                    .hint("say it with `--in IFACE`"));
                }
            }
        }
    };
    let request = request(args, input);
    follow(&seen.case(), request, &mut lookup, true)
}

/// Where a session goes that is for the router itself.
const HERE: &str = "no further than this router";
/// Where it goes when nobody but the kernel is asked.
const AS_EVER: &str = "as the router's own routes have it";

fn follow(
    case: &Case<'_>,
    request: Request,
    lookup: &mut dyn FnMut(&Question) -> Result<Answer, String>,
    kernel: bool,
) -> Result<Traced, Failure> {
    let moved = trace::moved(case, &request);
    let goes_on = moved.as_ref().is_some_and(|moved| moved.to.is_some());
    let own = [
        (
            request.server,
            "is this router itself: what it answers itself crosses no appliance and is not recorded",
            HERE,
        ),
        (
            request.client,
            "is this router itself: what it opens itself is not redirected",
            AS_EVER,
        ),
    ];
    // Others may forward what is for the router.
    for (address, why, way) in own.into_iter().skip(usize::from(goes_on)) {
        if legs::is_own(case.observed, address) {
            let why = vec![format!("{address} {why}")];
            return Ok(trace::direct(case.in_force, request, why, way.to_owned()));
        }
    }
    let redirect = match trace::taker(case.policy, &request) {
        Ok(redirect) => redirect,
        Err(mut why) => {
            let to = match &moved {
                None => Some(request.server),
                Some(moved) => {
                    why.push(format!("{}, and our rules look before that", moved.by));
                    moved.to.map(|to| to.ip())
                }
            };
            let way = match to {
                None => HERE.to_owned(),
                Some(to) if kernel => {
                    let question = Question::forwarded(request.client, to, &request.input);
                    legs::words(&lookup(&question))
                }
                Some(_) => AS_EVER.to_owned(),
            };
            return Ok(trace::direct(case.in_force, request, why, way));
        }
    };
    let sessions = vec![trace::session(redirect, &request, moved.as_ref())];
    legs::ask(case.policy, sessions, lookup)
        .first()
        .and_then(|asked| trace::follow(case, request, asked, kernel))
        .ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                "the redirect has no appliance address of this family",
            )
        })
}

/// From the policy alone: the router is taken to be as the policy implies.
fn offline(args: &Trace, policy: &Policy) -> Result<Traced, Failure> {
    let input = match &args.input {
        Some(input) => input.clone(),
        None => only_client_interface(policy).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "where the client comes in cannot be told offline",
            )
            .hint("say it with `--in IFACE`")
        })?,
    };
    let observed = Observed::clean(policy);
    let planned = planner::plan(policy, &observed, &Ledger::default(), Stage::Complete);
    let request = request(args, input);
    let case = Case {
        policy,
        file: &PolicyFile::default(),
        in_force: false,
        observed: &observed,
        planned: &planned,
        backend: Backend::Nftables,
        surroundings: &Surroundings::default(),
    };
    // Clients are where they come in; servers, where the policy has them, or somewhere.
    let client_interface = request.input.clone();
    let server_interface = policy
        .redirects
        .iter()
        .filter(|redirect| redirect.servers.contains(request.server))
        .flat_map(|redirect| &redirect.server_interfaces)
        .find_map(exact)
        .or_else(|| IfName::new("(servers)").ok());
    let client = request.client;
    let mut lookup = |question: &Question| {
        let interface = if question.to == client {
            Some(client_interface.clone())
        } else {
            server_interface.clone()
        };
        Ok(Answer::Route(Way {
            kind: RouteKind::Unicast,
            via: None,
            interface,
            table: TableId::MAIN,
        }))
    };
    follow(&case, request, &mut lookup, false)
}

fn exact(pattern: &IfPattern) -> Option<IfName> {
    match pattern {
        IfPattern::Exact(name) => Some(name.clone()),
        IfPattern::Prefix(_) => None,
    }
}

/// The client interface, if all redirects have the same single one.
fn only_client_interface(policy: &Policy) -> Option<IfName> {
    let mut names: Vec<IfName> = Vec::new();
    for pattern in policy
        .redirects
        .iter()
        .flat_map(|redirect| &redirect.client_interfaces)
    {
        let name = exact(pattern)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    }
}
