//! From text to [`Policy`]: every key read and checked by itself here, and all of them
//! together in [`super::check`]. Nothing stops at the first error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::net::RulePriority;

use super::diagnostic::{Code, Diagnostic, PolicyErrors, Severity, quoted};
use super::keys::{self, Kind};
use super::raw::{Given, Raw, RawAppliance, RawOptions, RawRedirect};
use super::reader::{Reader, describe, elements, entries, join};
use super::source::{Source, Span};
use super::{
    BackendChoice, Established, OnApplianceDown, Options, Policy, RpFilterChoice, check, syntax,
    value,
};

/// A policy that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What is wanted.
    pub policy: Policy,
    /// What is hardly meant so.
    pub warnings: Vec<Diagnostic>,
    /// Where everything stands, for errors that only the router brings to light.
    pub locations: Locations,
}

/// Where the values of keys stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locations(BTreeMap<String, Span>);

impl Locations {
    /// Where the value of `key` stands, a dotted path such as `appliance.scb.interface` or
    /// `redirect[2].client_interface`. Of a key that was left out: the table that
    /// it would stand in.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Span> {
        let mut key = key;
        loop {
            if let Some(span) = self.0.get(key) {
                return Some(*span);
            }
            key = key.get(..key.rfind(['.', '['])?)?;
        }
    }

    /// All keys with their places, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Span)> {
        self.0.iter().map(|(key, span)| (key.as_str(), *span))
    }
}

/// Reads a policy.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn read(source: &Source) -> Result<Reading, PolicyErrors> {
    let (repaired, mut mistakes) = syntax::repair(&source.text);
    let (document, errors) = DeTable::parse_recoverable(&repaired.text);
    mistakes.extend(syntax::mistakes(&repaired.text, &errors, |at| {
        repaired.typed(at)
    }));
    let mut reader = Reader::new(source, &repaired, mistakes);
    let raw = reader.document(document.get_ref());
    let policy = if reader.is_whole() {
        check::together(&raw, &mut reader)
    } else {
        // What is missing or does not fit together may only be so because of what
        // could not be read.
        None
    };
    let mut diagnostics = reader.diagnostics;
    diagnostics.sort_by_key(|diagnostic| (diagnostic.place.span.file, diagnostic.place.span.start));
    let refused = diagnostics
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    match policy {
        Some(policy) if !refused => Ok(Reading {
            policy,
            warnings: diagnostics,
            locations: Locations(reader.locations),
        }),
        _ => Err(PolicyErrors { diagnostics }),
    }
}

/// The list files that a policy names, in order of appearance; none of a file that is not TOML
/// at that place.
pub fn list_files(text: &str) -> Vec<PathBuf> {
    let (repaired, _) = syntax::repair(text);
    let (document, _) = DeTable::parse_recoverable(&repaired.text);
    let mut found = Vec::new();
    let redirects = entries(document.get_ref())
        .into_iter()
        .filter(|(name, _, _)| *name == "redirect");
    for (_, _, redirects) in redirects {
        for redirect in elements(redirects) {
            let DeValue::Table(redirect) = redirect.get_ref() else {
                continue;
            };
            for (name, _, networks) in entries(redirect) {
                let networks_here = keys::REDIRECT_TABLE
                    .key(name)
                    .is_some_and(|key| key.kind == Kind::Network);
                if networks_here {
                    found.extend(elements(networks).iter().filter_map(|item| file_of(item)));
                }
            }
        }
    }
    found
}

/// The path in `{ file = "…" }`.
fn file_of(item: &Spanned<DeValue<'_>>) -> Option<PathBuf> {
    let DeValue::Table(table) = item.get_ref() else {
        return None;
    };
    let (_, _, path) = entries(table)
        .into_iter()
        .find(|(name, _, _)| *name == "file")?;
    path.get_ref()
        .as_str()
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

impl Reader<'_> {
    // The file, table by table.

    fn document(&mut self, document: &DeTable<'_>) -> Raw {
        let top = self.fields(document, String::new(), Span::of_policy(0..0), &keys::TOP);
        let version = self.one(&top, &keys::VERSION, Self::version);
        if matches!(version, Given::Missing) && !self.is_meant(&top, &keys::VERSION) {
            let span = first_line(&self.source.text);
            let diagnostic = self
                .diagnostic(Code::MissingKey, span, "version", "`version` is missing")
                .wanted("`version = 1`")
                .hint("put `version = 1` at the top, before the first table");
            self.report(diagnostic);
        }
        let mut raw = Raw {
            appliances: Vec::new(),
            redirects: Vec::new(),
            options: RawOptions {
                span: None,
                mark_mask: Given::Missing,
                rule_priority: Given::Missing,
                others: Options::default(),
            },
            appliances_complete: true,
            redirects_complete: true,
        };
        for (name, name_span, value) in entries(document) {
            let name_span = self.at(name_span);
            match name {
                "appliance" => self.appliances(name_span, value, &mut raw),
                "redirect" => self.redirects(value, &mut raw),
                "options" => raw.options = self.options(name_span, value),
                _ => {}
            }
        }
        raw
    }

    fn appliances(&mut self, name_span: Span, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        let DeValue::Table(table) = value.get_ref() else {
            raw.appliances_complete = false;
            let span = self.at(value.span());
            if !self.is_damaged(span) {
                let diagnostic = self
                    .diagnostic(
                        Code::WrongType,
                        name_span,
                        "appliance",
                        "`appliance` is not a table of appliances",
                    )
                    .found(describe(value.get_ref()))
                    .wanted("a table for each appliance")
                    .hint("`[appliance.scb]`, with a name of your choice for `scb`");
                self.report(diagnostic);
            }
            return;
        };
        let entries = entries(table);
        let nameless = entries.iter().any(|(name, _, value)| {
            keys::APPLIANCE_TABLE.key(name).is_some()
                && !matches!(value.get_ref(), DeValue::Table(_))
        });
        if nameless {
            raw.appliances_complete = false;
            let diagnostic = self
                .diagnostic(
                    Code::MissingKey,
                    name_span,
                    "appliance",
                    "this appliance has no name",
                )
                .wanted("`[appliance.NAME]`")
                .hint("`[appliance.scb]`, with a name of your choice for `scb`");
            self.report(diagnostic);
            return;
        }
        for (typed, span, value) in entries {
            let span = self.at(span);
            let key = join("appliance", typed);
            let DeValue::Table(table) = value.get_ref() else {
                raw.appliances_complete = false;
                if !self.is_damaged(self.at(value.span())) {
                    let diagnostic = self
                        .diagnostic(
                            Code::WrongType,
                            span,
                            key,
                            format!("{} is not a key of `appliance`", quoted(typed)),
                        )
                        .found(describe(value.get_ref()))
                        .wanted("a table for each appliance")
                        .hint("`[appliance.scb]`, with a name of your choice for `scb`");
                    self.report(diagnostic);
                }
                continue;
            };
            let name = match value::appliance_name(typed) {
                Ok(name) => Some(name),
                Err(complaint) => {
                    self.complain(span, &key, complaint, Some(Kind::Name.wanted()));
                    None
                }
            };
            self.locations.insert(key.clone(), span);
            let fields = self.fields(table, key, span, &keys::APPLIANCE_TABLE);
            let appliance = RawAppliance {
                typed: typed.to_owned(),
                name,
                addresses: self.many(&fields, &keys::ADDRESS, |reader, item| {
                    reader.text(item, &keys::ADDRESS, value::appliance_address)
                }),
                interface: self.one(&fields, &keys::INTERFACE, |reader, item| {
                    let name = reader.text(item, &keys::INTERFACE, value::interface)?;
                    reader.warn_of_peer(item, name.as_str());
                    Some(name)
                }),
                macs: self.many(&fields, &keys::MAC, |reader, item| {
                    reader.text(item, &keys::MAC, value::mac)
                }),
                table: self.one(&fields, &keys::TABLE, |reader, item| {
                    reader.integer(item, &keys::TABLE, 0, u32::MAX)
                }),
                mark: self.one(&fields, &keys::MARK, |reader, item| {
                    reader.integer(item, &keys::MARK, 0, u32::MAX)
                }),
                key: fields.key,
                span,
            };
            raw.appliances.push(appliance);
        }
    }

    fn redirects(&mut self, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        for (index, element) in elements(value).into_iter().enumerate() {
            let number = index + 1;
            let key = format!("redirect[{number}]");
            let span = self.at(element.span());
            let DeValue::Table(table) = element.get_ref() else {
                raw.redirects_complete = false;
                if !self.is_damaged(span) {
                    let diagnostic = self
                        .diagnostic(Code::WrongType, span, key, "a redirect is a table")
                        .found(describe(element.get_ref()))
                        .wanted("a table for each redirect")
                        .hint("`[[redirect]]` on a line of its own, its keys below");
                    self.report(diagnostic);
                }
                continue;
            };
            self.locations.insert(key.clone(), span);
            let fields = self.fields(table, key, span, &keys::REDIRECT_TABLE);
            let redirect = RawRedirect {
                number,
                name: self.one(&fields, &keys::NAME, |reader, item| {
                    reader.text(item, &keys::NAME, value::name)
                }),
                appliance: self.one(&fields, &keys::APPLIANCE, |reader, item| {
                    reader.text(item, &keys::APPLIANCE, |text| Ok(text.to_owned()))
                }),
                clients: self.patterns(&fields, &keys::CLIENT_INTERFACE),
                server_interfaces: self.patterns(&fields, &keys::SERVER_INTERFACE),
                servers: self.many(&fields, &keys::SERVER_NETWORK, Self::networks),
                ports: self.many(&fields, &keys::PORT, Self::port),
                snat: self.one(&fields, &keys::SNAT, Self::boolean),
                except_clients: self.many(&fields, &keys::EXCEPT_CLIENT, Self::networks),
                except_servers: self.many(&fields, &keys::EXCEPT_SERVER, Self::networks),
                key: fields.key,
                span,
            };
            raw.redirects.push(redirect);
        }
    }

    fn options(&mut self, name_span: Span, value: &Spanned<DeValue<'_>>) -> RawOptions {
        let mut options = RawOptions {
            span: Some(name_span),
            mark_mask: Given::Missing,
            rule_priority: Given::Missing,
            others: Options::default(),
        };
        let DeValue::Table(table) = value.get_ref() else {
            let span = self.at(value.span());
            if !self.is_damaged(span) {
                let diagnostic = self
                    .diagnostic(Code::WrongType, span, "options", "`options` is not a table")
                    .found(describe(value.get_ref()))
                    .wanted("`[options]`")
                    .hint("`[options]` once, on a line of its own, its keys below");
                self.report(diagnostic);
            }
            return options;
        };
        let key = "options".to_owned();
        self.locations.insert(key.clone(), name_span);
        let fields = self.fields(table, key, name_span, &keys::OPTIONS_TABLE);
        let RawOptions {
            mark_mask,
            rule_priority,
            others,
            ..
        } = &mut options;
        *mark_mask = self.one(&fields, &keys::MARK_MASK, |reader, item| {
            reader.integer(item, &keys::MARK_MASK, 1, u32::MAX)
        });
        *rule_priority = self.one(&fields, &keys::RULE_PRIORITY, |reader, item| {
            reader.integer(item, &keys::RULE_PRIORITY, 1, check::LAST_PRIORITY)
        });
        if let Some(mask) = mark_mask.good() {
            others.mark_mask = mask.value;
        }
        if let Some(priority) = rule_priority.good() {
            others.rule_priority = RulePriority(priority.value);
        }
        self.choice(&fields, &keys::BACKEND, &mut others.backend, |word| {
            Some(match word {
                "auto" => BackendChoice::Auto,
                "nftables" => BackendChoice::Nftables,
                "iptables" => BackendChoice::Iptables,
                _ => return None,
            })
        });
        self.choice(
            &fields,
            &keys::ON_APPLIANCE_DOWN,
            &mut others.on_appliance_down,
            |word| {
                Some(match word {
                    "block" => OnApplianceDown::Block,
                    "bypass" => OnApplianceDown::Bypass,
                    _ => return None,
                })
            },
        );
        self.choice(
            &fields,
            &keys::ESTABLISHED,
            &mut others.established,
            |word| {
                Some(match word {
                    "redirect" => Established::Redirect,
                    "keep" => Established::Keep,
                    _ => return None,
                })
            },
        );
        self.choice(&fields, &keys::RP_FILTER, &mut others.rp_filter, |word| {
            Some(match word {
                "loose" => RpFilterChoice::Loose,
                "off" => RpFilterChoice::Off,
                "keep" => RpFilterChoice::Keep,
                _ => return None,
            })
        });
        options
    }
}

/// The first line that says something, or the beginning of the file.
fn first_line(text: &str) -> Span {
    let start = text
        .split_inclusive('\n')
        .scan(0, |at, line| {
            let start = *at;
            *at += line.len();
            Some((start, line))
        })
        .find(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map_or(0, |(start, _)| start);
    let line = syntax::line_of(text, start);
    Span::of_policy(line)
}
