//! A trace as people read it.

use std::fmt::Write as _;

use super::super::Outcome;
use super::super::text::Emphasis;
use super::{Fate, Trace, endpoint};

/// The trace as people read it.
#[must_use]
pub fn text(trace: &Trace, paint: &dyn Fn(Emphasis, &str) -> String) -> String {
    let request = &trace.request;
    let mut text = format!(
        "{} to {}, in on `{}`: ",
        endpoint(request.client, request.client_port),
        endpoint(request.server, request.port),
        request.input
    );
    match &trace.fate {
        Fate::Redirected {
            redirect,
            appliance,
        } => {
            let when = if trace.in_force { "" } else { " once applied" };
            let verdict = format!("redirected{when}");
            _ = writeln!(
                text,
                "{} by `{redirect}` through appliance `{appliance}`",
                paint(Emphasis::Good, &verdict)
            );
        }
        Fate::Broken {
            redirect,
            appliance,
            leg,
            failing,
        } => {
            _ = writeln!(
                text,
                "taken by `{redirect}` for appliance `{appliance}`, but {} at leg {leg}",
                paint(Emphasis::Error, failing.ending.words()),
            );
            _ = writeln!(text, "  {}", failing.because);
        }
        Fate::Direct { why, way } => {
            _ = writeln!(
                text,
                "{}, goes {way}",
                paint(Emphasis::Warning, "not redirected")
            );
            for reason in why {
                _ = writeln!(text, "  {reason}");
            }
            if why.is_empty() {
                text.push_str("  the policy redirects nothing\n");
            }
        }
    }
    for leg in &trace.legs {
        let heading = format!("leg {}, {}", leg.leg, leg.title);
        _ = writeln!(
            text,
            "\n{}: {} to {}, in on `{}`",
            paint(Emphasis::Heading, &heading),
            leg.from,
            leg.to,
            leg.input
        );
        _ = writeln!(text, "  marks   {}", leg.marks);
        for other in &leg.others {
            _ = writeln!(text, "  others  {other}");
        }
        _ = writeln!(text, "  route   {}", leg.route);
        let verdict = match (&leg.fails, leg.verdict) {
            (Some(_), _) | (None, Outcome::Astray) => String::new(),
            (None, Outcome::AsExpected) => format!(": {}", paint(Emphasis::Good, "ok")),
            (None, Outcome::OnceApplied) => {
                format!(": {}", paint(Emphasis::Quiet, "once applied"))
            }
        };
        let kernel = leg.kernel.as_deref().unwrap_or("not asked");
        _ = writeln!(text, "  kernel  {kernel}{verdict}");
        if let Some(failing) = &leg.fails {
            _ = writeln!(
                text,
                "  {}   the session {}: {}",
                paint(Emphasis::Error, "FAILS"),
                failing.ending.words(),
                failing.because
            );
        }
    }
    text
}
