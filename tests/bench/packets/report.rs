//! Paces, ratios, and what was to be reached: two tables in Markdown.

use redirect::iptables::Variant;

use super::router::Traffic;
use super::rules::{Ports, Rules};
use crate::Samples;

/// Prints both tables; what was to be reached, only if it can be told.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub fn print(samples: &Samples, rounds: usize, is_full: bool) {
    println!("{}", figures(samples, rounds).join("\n"));
    if is_full {
        println!("\n{}", targets(samples).join("\n"));
    }
}

/// The pace that is reached undisturbed: whatever else runs on the machine only ever takes from it, so
/// it is the one that a tenth of the rounds exceed.
fn pace(samples: &Samples, rules: Rules, traffic: Traffic) -> Option<f64> {
    let mut values = samples.get(&(rules, traffic))?.clone();
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 9 / 10).copied()
}

fn kinds(samples: &Samples) -> Vec<Rules> {
    let mut kinds: Vec<_> = samples.keys().map(|(rules, _)| *rules).collect();
    kinds.dedup();
    kinds
}

fn figures(samples: &Samples, rounds: usize) -> Vec<String> {
    let mut head = "| packets a second, relative to no rules (added latency) |".to_owned();
    let mut line = "|---|".to_owned();
    for traffic in Traffic::ALL {
        head = format!("{head} {traffic} |");
        line.push_str("---:|");
    }
    let mut lines = vec![head, line];
    for rules in kinds(samples) {
        let mut row = format!("| {rules} |");
        for traffic in Traffic::ALL {
            let found = pace(samples, rules, traffic).zip(pace(samples, Rules::None, traffic));
            row = match found {
                Some((is, none)) if rules == Rules::None => {
                    format!("{row} {:.0} a second |", is.max(none))
                }
                Some((is, none)) => {
                    let added = 1e9 / is - 1e9 / none;
                    format!("{row} {:.2} ({added:+.0} ns) |", is / none)
                }
                None => format!("{row} – |"),
            };
        }
        lines.push(row);
    }
    lines.push(String::new());
    lines.push(format!(
        "The ninth decile of {rounds} rounds, all kinds in turn."
    ));
    lines
}

fn targets(samples: &Samples) -> Vec<String> {
    let mut lines = vec![
        "| to reach | measured | |".to_owned(),
        "|---|---:|---|".to_owned(),
    ];
    let nftables = |networks, redirects| {
        kinds(samples).into_iter().find(|rules| {
            matches!(rules, Rules::Nftables { networks: n, redirects: r, ports: Ports::Own }
                if (*n > 10_000) == (networks > 10_000) && *r == redirects)
        })
    };
    let iptables = |variant, many| {
        kinds(samples).into_iter().find(|rules| {
            matches!(rules, Rules::Iptables { variant: v, networks, sets: true }
                if *v == variant && (*networks > 1) == many)
        })
    };
    let vendor = Rules::Vendor;
    let mut compare = |what: &str, is: Option<Rules>, least: f64, times: Option<Rules>| {
        for traffic in Traffic::ALL {
            let value = |rules: Option<Rules>| pace(samples, rules?, traffic);
            if let (Some(is), Some(times)) = (value(is), value(times)) {
                let ratio = is / times;
                let verdict = if ratio >= least { "met" } else { "**not met**" };
                lines.push(format!(
                    "| {what} ≥ {least}: {traffic} | {ratio:.2} | {verdict} |"
                ));
            }
        }
    };
    let one = nftables(1, 1);
    compare(
        "nftables, one network ÷ the vendor's rules, iptables-nft",
        one,
        1.0,
        Some(vendor(Variant::Nft)),
    );
    compare(
        "nftables, 100,000 networks ÷ one",
        nftables(100_000, 1),
        0.9,
        one,
    );
    compare("nftables, 20 redirects ÷ one", nftables(20, 20), 0.9, one);
    for variant in [Variant::Nft, Variant::Legacy] {
        let what = format!("{variant} with ipset, 100,000 networks ÷ the vendor's rules");
        compare(&what, iptables(variant, true), 0.9, Some(vendor(variant)));
    }
    for rules in kinds(samples) {
        let none = pace(samples, Rules::None, Traffic::Redirected);
        if let (true, Some(is), Some(none)) = (
            matches!(rules, Rules::Nftables { .. } | Rules::Iptables { .. }),
            pace(samples, rules, Traffic::Redirected),
            none,
        ) {
            let ratio = is / none;
            let verdict = if ratio >= 0.75 { "met" } else { "**not met**" };
            lines.push(format!(
                "| redirected ÷ no rules ≥ 0.75: {rules} | {ratio:.2} | {verdict} |"
            ));
        }
    }
    lines
}
