//! From text to [`Policy`]: every key read and checked by itself here, and all of them
//! together in [`super::check`]. Nothing stops at the first error.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::net::RulePriority;

use super::diagnostic::{Code, Diagnostic, PolicyErrors, Severity, quoted};
use super::keys::{self, Kind};
use super::raw::{Given, Raw, RawAppliance, RawOptions, RawRedirect};
use super::reader::{Fields, Reader, elements, entries, join};
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
    let locations = std::mem::take(&mut reader.locations);
    let mut diagnostics = reader.into_diagnostics();
    // What is right or wrong in a version that is not known here, nobody can say.
    if diagnostics
        .iter()
        .any(|diagnostic| diagnostic.code == Code::Version)
    {
        diagnostics.retain(|diagnostic| diagnostic.code == Code::Version);
    }
    for diagnostic in &mut diagnostics {
        diagnostic.found = found(source, diagnostic);
    }
    diagnostics.sort_by_key(|diagnostic| (diagnostic.place.span.file, diagnostic.place.span.start));
    let refused = diagnostics
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    match policy {
        Some(policy) if !refused => Ok(Reading {
            policy,
            warnings: diagnostics,
            locations: Locations(locations),
        }),
        _ => Err(PolicyErrors { diagnostics }),
    }
}

/// What stands at a diagnostic's place, as far as it can be said in a line.
fn found(source: &Source, diagnostic: &Diagnostic) -> Option<String> {
    const LONGEST: usize = 200;
    let span = diagnostic.place.span;
    let text = source.text_of(span.file).get(span.start..span.end)?;
    let absent = matches!(
        diagnostic.code,
        Code::MissingKey | Code::NothingToDo | Code::WhichAppliance
    );
    (!absent && !text.is_empty() && text.len() <= LONGEST).then(|| text.to_owned())
}

/// The list files that a policy names, in order of appearance; none of a file that is not TOML
/// at that place.
pub fn list_files(text: &str) -> Vec<PathBuf> {
    let (repaired, _) = syntax::repair(text);
    let (document, _) = DeTable::parse_recoverable(&repaired.text);
    let mut found = Vec::new();
    files_in(document.get_ref(), &mut found);
    found
}

/// Every `{ file = "…" }` of a table and of those within; the parser bounds their depth.
fn files_in(table: &DeTable<'_>, found: &mut Vec<PathBuf>) {
    for (_, _, value) in entries(table) {
        for item in elements(value) {
            let DeValue::Table(table) = item.get_ref() else {
                continue;
            };
            let path = table.get("file").and_then(|path| path.get_ref().as_str());
            match path {
                Some("") => {}
                Some(path) => found.push(PathBuf::from(path)),
                None => files_in(table, found),
            }
        }
    }
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
            // A table whose name is misspelt has been reported, and is read as what it means.
            let meant = match name {
                _ if name == keys::VERSION.name => continue,
                _ => keys::meant_by(name, keys::TABLES.into_iter()),
            };
            match meant {
                Some("appliance") => self.appliances(name_span, value, &mut raw),
                Some("redirect") => self.redirects(value, &mut raw),
                Some("options") => raw.options = self.options(name_span, value),
                _ => {}
            }
        }
        raw
    }

    fn appliances(&mut self, name_span: Span, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        let DeValue::Table(table) = value.get_ref() else {
            raw.appliances_complete = false;
            if !self.is_damaged(self.at(value.span())) {
                let name = elements(value).into_iter().find_map(|element| {
                    let DeValue::Table(table) = element.get_ref() else {
                        return None;
                    };
                    table.get("name")?.get_ref().as_str().map(str::to_owned)
                });
                let diagnostic = self
                    .diagnostic(
                        Code::WrongType,
                        name_span,
                        "appliance",
                        "an appliance has its name in the header",
                    )
                    .wanted("`[appliance.NAME]` for each");
                self.report(match name {
                    Some(name) => diagnostic.hint(format!("`[{}]`", join("appliance", &name))),
                    None => {
                        diagnostic.hint("`[appliance.scb]`, with a name of your choice for `scb`")
                    }
                });
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
            if let DeValue::Table(table) = value.get_ref() {
                let appliance = self.appliance(typed, span, table);
                raw.appliances.push(appliance);
                continue;
            }
            raw.appliances_complete = false;
            if !self.is_damaged(self.at(value.span())) {
                let diagnostic = self
                    .diagnostic(
                        Code::WrongType,
                        span,
                        join("appliance", typed),
                        format!("{} is not a key of `appliance`", quoted(typed)),
                    )
                    .wanted("a table for each appliance")
                    .hint("`[appliance.scb]`, with a name of your choice for `scb`");
                self.report(diagnostic);
            }
        }
    }

    fn appliance(&mut self, typed: &str, span: Span, table: &DeTable<'_>) -> RawAppliance {
        let key = join("appliance", typed);
        let name = match value::appliance_name(typed) {
            Ok(name) => Some(name),
            Err(complaint) => {
                self.complain(span, &key, complaint, Some(Kind::Name.wanted()));
                None
            }
        };
        self.locations.insert(key.clone(), span);
        let fields = self.fields(table, key, span, &keys::APPLIANCE_TABLE);
        RawAppliance {
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
        }
    }

    fn redirects(&mut self, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        if let DeValue::Table(table) = value.get_ref() {
            let named = entries(table);
            let all = named.iter().all(|(name, _, value)| {
                keys::REDIRECT_TABLE.key(name).is_none()
                    && matches!(value.get_ref(), DeValue::Table(_))
            });
            if all && !named.is_empty() {
                self.named_redirects(&named, raw);
                return;
            }
        }
        for element in elements(value) {
            let number = raw.redirects.len() + 1;
            let span = self.at(element.span());
            if let DeValue::Table(table) = element.get_ref() {
                let key = format!("redirect[{number}]");
                let fields = self.fields(table, key, span, &keys::REDIRECT_TABLE);
                let redirect = self.redirect(number, span, &fields);
                raw.redirects.push(redirect);
                continue;
            }
            raw.redirects_complete = false;
            if !self.is_damaged(span) {
                let diagnostic = self
                    .diagnostic(Code::WrongType, span, "redirect", "a redirect is a table")
                    .wanted("a table for each redirect")
                    .hint("`[[redirect]]` on a line of its own, its keys below");
                self.report(diagnostic);
            }
        }
    }

    /// `[redirect.rdp]`, as appliances are written.
    fn named_redirects(
        &mut self,
        named: &[(&str, Range<usize>, &Spanned<DeValue<'_>>)],
        raw: &mut Raw,
    ) {
        for (name, span, value) in named {
            let span = self.at(span.clone());
            let diagnostic = self
                .diagnostic(
                    Code::WrongType,
                    span,
                    join("redirect", name),
                    "a redirect has its name below the header",
                )
                .wanted("`[[redirect]]` for each")
                .hint(format!("`[[redirect]]`, and below it `name = \"{name}\"`"));
            self.report(diagnostic);
            if let DeValue::Table(table) = value.get_ref() {
                let number = raw.redirects.len() + 1;
                let key = format!("redirect[{number}]");
                let mut fields = self.fields(table, key, span, &keys::REDIRECT_TABLE);
                fields.meant.push(keys::NAME.name);
                let redirect = self.redirect(number, span, &fields);
                raw.redirects.push(redirect);
            }
        }
    }

    fn redirect(&mut self, number: usize, span: Span, fields: &Fields<'_, '_>) -> RawRedirect {
        self.locations.insert(fields.key.clone(), span);
        RawRedirect {
            number,
            name: self.one(fields, &keys::NAME, |reader, item| {
                reader.text(item, &keys::NAME, value::name)
            }),
            appliance: self.one(fields, &keys::APPLIANCE, |reader, item| {
                reader.text(item, &keys::APPLIANCE, |text| Ok(text.to_owned()))
            }),
            clients: self.patterns(fields, &keys::CLIENT_INTERFACE),
            server_interfaces: self.patterns(fields, &keys::SERVER_INTERFACE),
            servers: self.many(fields, &keys::SERVER_NETWORK, Self::networks),
            ports: self.many(fields, &keys::PORT, Self::port),
            snat: self.one(fields, &keys::SNAT, Self::boolean),
            except_clients: self.many(fields, &keys::EXCEPT_CLIENT, Self::networks),
            except_servers: self.many(fields, &keys::EXCEPT_SERVER, Self::networks),
            key: fields.key.clone(),
            span,
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
