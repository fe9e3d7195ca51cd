//! `redirect init`: looks at the router and writes a first policy.

use std::net::IpAddr;
use std::path::Path;

use crate::cli::Init;
use crate::failure::{Exit, Failure};
use crate::init::{self, Draft, Entry, Facts};
use crate::kernel::router::Router;
use crate::kernel::{Kernel, Wish, files, surroundings};
use crate::net::{Networks, PortRange, Range};
use crate::observation::FileContent;
use crate::policy::{self, Policy, Source};
use crate::terminal::Terminal;

pub(super) fn run(args: &Init, terminal: &Terminal) -> Result<Exit, Failure> {
    if let Some(path) = &args.output {
        may_be_written(path)?;
    }
    let mut router = Router::open()?;
    let nothing = Policy::default();
    let observed = router.observe(&Wish {
        policies: &[&nothing],
    })?;
    let all = surroundings::inventory(&observed, &mut router);
    let facts = Facts {
        observed: &observed,
        routes: &all.routes,
        rules: &all.rules,
        neighbours: &all.neighbours,
    };
    for unseen in &all.unseen {
        terminal.warn(
            &format!("{} not looked at: {}", unseen.what, unseen.why),
            None,
        );
    }
    let by_hand = init::recognise(&facts);
    let draft = match &by_hand {
        Some(by_hand) => by_hand.draft(&facts),
        None => draft(args, &facts, terminal)?,
    };
    let text = init::policy_text(&draft, &facts);
    // What is written is a policy, or it is not written.
    let source = Source {
        name: "the policy".to_owned(),
        text: text.clone(),
        lists: Vec::new(),
        unreadable: Vec::new(),
    };
    if let Err(errors) = policy::read(&source) {
        let mut failure = Failure::new(
            Exit::Usage,
            "this would not be a sound policy; nothing was written",
        );
        let style = policy::Style {
            color: terminal.colour_err(),
            ..policy::Style::default()
        };
        failure.report = Some(policy::render(&errors.diagnostics, &source, style).into());
        return Err(failure);
    }
    match &args.output {
        Some(path) => {
            let content = FileContent { text, mode: 0o600 };
            files::replace(
                &std::path::absolute(path).unwrap_or_else(|_| path.clone()),
                &content,
            )?;
            terminal.note(&format!("wrote `{}`", path.display()));
        }
        None => terminal.data(&text)?,
    }
    if let Some(by_hand) = &by_hand {
        terminal.note(&format!(
            "\nThe procedure was typed here by hand: mark {:#x}, appliance on `{}`. The policy says the same.\n\n{}",
            by_hand.mark,
            by_hand.interface,
            by_hand.removal().join("\n")
        ));
    }
    Ok(Exit::Done)
}

/// Asked before any question, whose answers would be lost.
fn may_be_written(path: &Path) -> Result<(), Failure> {
    if files::read(path, 0).map_or(true, |found| found.is_some()) {
        let message = format!(
            "`{}` is there already, and was left as it is",
            path.display()
        );
        return Err(Failure::new(Exit::Failed, message).hint("move it away, or name another file"));
    }
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() && !directory.is_dir() => {
            let directory = directory.display();
            Err(
                Failure::new(Exit::Failed, format!("there is no directory `{directory}`"))
                    .hint(format!("`mkdir -p {directory}` makes it")),
            )
        }
        _ => Ok(()),
    }
}

/// From flags, and on a terminal from answers.
fn draft(args: &Init, facts: &Facts<'_>, terminal: &Terminal) -> Result<Draft, Failure> {
    let mut missing = Vec::new();
    if terminal.can_ask() {
        terminal.note(&format!(
            "This router has:\n{}",
            init::inventory(facts).replace('#', " ")
        ));
    }
    let mut ask = |given: &[String], flag: &'static str, question: &str| -> Vec<String> {
        if !given.is_empty() {
            return given.to_vec();
        }
        let Some(answer) = terminal.ask(question) else {
            missing.push(flag);
            return Vec::new();
        };
        let words = answer.split([',', ' ']).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let appliance = ask(&args.appliance, "--appliance", "The appliance's addresses?");
    let clients = ask(
        &args.client_interface,
        "--client-interface",
        "Interfaces where clients come in?",
    );
    let servers = ask(
        &args.server_network,
        "--server-network",
        "Networks of the servers?",
    );
    let ports = ask(
        &args.port,
        "--port",
        "TCP ports (as in 22, 3389, 5900-5910)?",
    );
    if !missing.is_empty() {
        let failure = Failure::new(
            Exit::Usage,
            format!("no policy can be written without {}", missing.join(", ")),
        )
        .detail("this router has:");
        return Err(init::inventory(facts)
            .lines()
            .fold(failure, |failure, line| {
                failure.detail(line.replacen("#   ", "  ", 1))
            })
            .hint("give these, or run it on a terminal, where it asks"));
    }
    let snat = args.snat
        || (terminal.can_ask()
            && terminal
                .ask("Does the appliance dial servers with the client's own address (y/n)?")
                .is_some_and(|answer| answer.starts_with(['y', 'Y'])));
    let appliance: Vec<IpAddr> = appliance
        .iter()
        .map(|word| parsed(word, "an address"))
        .collect::<Result<_, _>>()?;
    let interface = interface(args, facts, &appliance)?;
    let servers = servers
        .iter()
        .map(|word| {
            word.parse()
                .or_else(|_| word.parse::<IpAddr>().map(ipnet::IpNet::from))
                .map_err(|_| wrong(word, "a network"))
        })
        .collect::<Result<Vec<ipnet::IpNet>, _>>()?;
    let ports = ports
        .iter()
        .map(|word| ports_of(word))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Draft {
        name: String::new(),
        appliance,
        interface,
        entries: vec![Entry {
            clients,
            server_interfaces: Vec::new(),
            servers: Networks::merged(servers),
            ports,
            snat,
        }],
        table: None,
        mark: None,
    })
}

fn interface(args: &Init, facts: &Facts<'_>, appliance: &[IpAddr]) -> Result<String, Failure> {
    if let Some(interface) = &args.interface {
        return Ok(interface.to_string());
    }
    appliance
        .iter()
        .find_map(|address| init::interface_of(facts.observed, *address))
        .map(|name| name.to_string())
        .ok_or_else(|| {
            Failure::new(
                Exit::Lacking,
                "the appliance is not on-link at any interface of this router",
            )
            .hint("it must be a direct neighbour; name its interface with `--interface`")
        })
}

fn wrong(word: &str, wanted: &str) -> Failure {
    Failure::new(Exit::Usage, format!("`{word}` is not {wanted}"))
}

fn parsed<T: std::str::FromStr>(word: &str, wanted: &str) -> Result<T, Failure> {
    word.parse().map_err(|_| wrong(word, wanted))
}

fn ports_of(word: &str) -> Result<PortRange, Failure> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (parsed(first, "a port")?, parsed(last, "a port")?);
    Ok(Range { first, last })
}
