//! What a packet costs that the router forwards: small packets of bystanders and of redirected
//! sessions, under rules of several kinds, in turn, each on a router of its own.
//!
//! ```text
//! cargo bench --bench packets                     all of it: two minutes on a quiet machine
//! cargo bench --bench packets -- --rounds 5       each so often
//! cargo test --bench packets                      whether it works: once, a debug build
//! ```
//!
//! A packet is sent into one end of a link and is forwarded at once, on the same processor,
//! until it leaves by another link whose far end throws it away. So the time from packet to
//! packet is what sending and forwarding take, and what rules add to it is the latency that
//! they add. Needs root, for network namespaces of its own; this machine's rules are not touched.

mod packets {
    pub mod frames;
    pub mod report;
    pub mod router;
    pub mod rules;
}

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use packets::report;
use packets::router::{Router, Traffic};
use packets::rules::Rules;

/// Whatever goes wrong ends the run and is shown.
type Trouble = Box<dyn Error>;

/// How long each is measured at a time, and how often.
const FULL: (Duration, usize) = (Duration::from_millis(100), 20);
const SMOKE: (Duration, usize) = (Duration::from_millis(10), 1);
/// Smaller sets, where nothing but whether it works is asked.
const FEW: usize = 50;

/// Packets a second, by rules and traffic; one for each round.
type Samples = BTreeMap<(Rules, Traffic), Vec<f64>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            tell(&trouble.to_string());
            ExitCode::FAILURE
        }
    }
}

fn tell(what: &str) {
    // Nothing more can be done where standard error is closed.
    let _ = writeln!(io::stderr(), "{what}");
}

fn run(arguments: &[String]) -> Result<(), Trouble> {
    if !nix::unistd::geteuid().is_root() {
        tell("SKIPPED packet benchmark: namespaces of its own need root");
        return Ok(());
    }
    let is_full = arguments.iter().any(|word| word == "--bench");
    let (time, usual) = if is_full { FULL } else { SMOKE };
    let rounds = match arguments.iter().position(|word| word == "--rounds") {
        Some(at) => arguments
            .get(at + 1)
            .ok_or("usage: cargo bench --bench packets -- [--rounds N]")?
            .parse()?,
        None => usual,
    };
    let most = if is_full { usize::MAX } else { FEW };
    let mut routers = Vec::new();
    for rules in Rules::all(most) {
        if let Some(missing) = rules.missing_program() {
            tell(&format!("SKIPPED {rules}: there is no `{missing}`"));
            continue;
        }
        let mut router = Router::new()?;
        rules.put_in()?;
        router.open_sessions()?;
        if router.redirects()? != rules.redirects() {
            return Err(format!("{rules}: sessions do not go where they should").into());
        }
        routers.push((rules, router));
    }
    let mut samples = Samples::new();
    for _ in 0..rounds {
        for (rules, router) in &mut routers {
            for traffic in Traffic::ALL {
                let found = router.forward(traffic, time)?;
                let way = (*rules, traffic);
                samples.entry(way).or_default().extend(found);
            }
        }
    }
    report::print(&samples, rounds, is_full);
    Ok(())
}
