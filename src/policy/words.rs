//! Lists of names, and which of them was meant.

/// `a`, `b` and `c`, between backticks.
pub fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The name that was probably meant by `typed`.
pub fn nearest<'n>(typed: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    let singular = typed.strip_suffix('s').unwrap_or(&typed);
    names
        .map(|name| {
            let lower = name.to_ascii_lowercase();
            let distance = strsim::damerau_levenshtein(&typed, &lower)
                .min(strsim::damerau_levenshtein(singular, &lower));
            // `network`, `tcp_port`: near in meaning, whatever the distance.
            let part = singular.len() >= 3 && (lower.contains(singular) || typed.contains(&lower));
            let near = distance <= 1 + name.len() / 5;
            let rank = if near { distance } else { 10 + name.len() };
            (near || part, rank, name)
        })
        .filter(|(close, ..)| *close)
        .min_by_key(|(_, rank, _)| *rank)
        .map(|(.., name)| name)
}

/// `text` as part of a sentence: no capital, no full stop.
pub fn lower_first(text: &str) -> String {
    let mut characters = text.trim_end_matches('.').chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant() {
        let names = [
            "name",
            "client_interface",
            "server_interface",
            "server_network",
            "port",
            "snat",
        ];
        for (typed, meant) in [
            ("ports", Some("port")),
            ("tcp_port", Some("port")),
            ("dport", Some("port")),
            ("networks", Some("server_network")),
            ("server-network", Some("server_network")),
            ("clientinterface", Some("client_interface")),
            ("Name", Some("name")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, names.into_iter()), meant, "{typed}");
        }
        assert_eq!(listed(["a"].into_iter()), "`a`");
        assert_eq!(listed(["a", "b", "c"].into_iter()), "`a`, `b` and `c`");
    }
}
