//! From text to [`Policy`]: every key read and checked by itself here, and all of them
//! together in [`super::check`]. Nothing stops at the first error.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::net::{IfName, IfPattern, MacAddr, PortRange, RulePriority};

use super::diagnostic::{Code, Diagnostic, PolicyErrors, Severity, quoted};
use super::keys::{self, Key, Kind, Needed, Section};
use super::source::{Source, Span};
use super::value::{self, Complaint};
use super::{
    BackendChoice, Established, Name, OnApplianceDown, Options, Policy, RpFilterChoice, check,
    syntax,
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
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    let mut reader = Reader::new(source);
    reader.take_syntax_errors(&errors);
    let raw = reader.document(document.get_ref());
    let policy = if errors.is_empty() {
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
    let (document, _) = DeTable::parse_recoverable(text);
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

/// A list's items, or the one value.
fn elements<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Vec<&'a Spanned<DeValue<'i>>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    }
}

/// A table's keys, where each stands, and their values, in order of appearance (the parser sorts them by name).
fn entries<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a str, Range<usize>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
        .collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// A value with where it stands and what it is called.
#[derive(Debug, Clone)]
pub struct Field<T> {
    pub value: T,
    pub span: Span,
    pub key: String,
}

/// What was found for a key.
#[derive(Debug, Clone)]
pub enum Given<T> {
    /// Nothing.
    Missing,
    /// Something wrong, which has been reported.
    Bad,
    /// A sound value.
    Good(Field<T>),
}

impl<T> Given<T> {
    pub fn good(&self) -> Option<&Field<T>> {
        match self {
            Self::Good(field) => Some(field),
            _ => None,
        }
    }
}

/// What was found for a key that takes a list.
#[derive(Debug, Clone)]
pub struct Many<T> {
    /// The sound ones.
    pub items: Vec<Field<T>>,
    /// Whether all of them were sound; if not, nothing may be concluded from
    /// what is *not* among them.
    pub complete: bool,
    /// Where the whole value stands, or the table where it is missing.
    pub span: Span,
    /// What it is called.
    pub key: String,
}

/// One item of a list of networks.
#[derive(Debug, Clone)]
pub enum Networks {
    /// A network.
    One(IpNet),
    /// The networks of a list file, and the file's number in [`Span::file`].
    File(Rc<Vec<IpNet>>, usize),
}

impl Networks {
    pub fn as_slice(&self) -> &[IpNet] {
        match self {
            Self::One(network) => std::slice::from_ref(network),
            Self::File(networks, _) => networks,
        }
    }
}

/// `[appliance.NAME]` as read.
#[derive(Debug)]
pub struct RawAppliance {
    pub typed: String,
    pub name: Option<Name>,
    pub key: String,
    pub span: Span,
    pub addresses: Many<IpAddr>,
    pub interface: Given<IfName>,
    pub macs: Many<MacAddr>,
    pub table: Given<u32>,
    pub mark: Given<u32>,
}

/// `[[redirect]]` as read.
#[derive(Debug)]
pub struct RawRedirect {
    pub number: usize,
    pub key: String,
    pub span: Span,
    pub name: Given<Name>,
    pub appliance: Given<String>,
    pub clients: Many<IfPattern>,
    pub server_interfaces: Many<IfPattern>,
    pub servers: Many<Networks>,
    pub ports: Many<PortRange>,
    pub snat: Given<bool>,
    pub except_clients: Many<Networks>,
    pub except_servers: Many<Networks>,
}

impl RawRedirect {
    /// As messages call it.
    pub fn called(&self) -> String {
        match self.name.good() {
            Some(name) => format!("redirect `{}`", name.value),
            None => format!("redirect {}", self.number),
        }
    }
}

/// `[options]` as read.
#[derive(Debug)]
pub struct RawOptions {
    pub span: Option<Span>,
    pub mark_mask: Given<u32>,
    pub rule_priority: Given<u32>,
    pub others: Options,
}

/// The whole file as read.
#[derive(Debug)]
pub struct Raw {
    pub appliances: Vec<RawAppliance>,
    pub redirects: Vec<RawRedirect>,
    pub options: RawOptions,
    /// Whether all appliances were tables.
    pub appliances_complete: bool,
    /// Whether all redirects were.
    pub redirects_complete: bool,
}

/// A table and its place.
struct Fields<'a, 'i> {
    table: &'a DeTable<'i>,
    key: String,
    span: Span,
}

/// A value and its place.
struct Item<'a, 'i> {
    value: &'a DeValue<'i>,
    span: Span,
    key: String,
}

/// What a list file holds.
#[derive(Clone)]
struct ListNetworks {
    networks: Rc<Vec<IpNet>>,
    /// Its number in [`Span::file`].
    file: usize,
    /// Whether every line was sound.
    complete: bool,
}

/// Walks the document, and collects what there is to say about it.
pub struct Reader<'s> {
    pub source: &'s Source,
    pub diagnostics: Vec<Diagnostic>,
    locations: BTreeMap<String, Span>,
    /// Places of the parser's complaints: values there are not what was typed.
    damage: Vec<Range<usize>>,
    lists: HashMap<PathBuf, Option<ListNetworks>>,
}

impl<'s> Reader<'s> {
    fn new(source: &'s Source) -> Self {
        Self {
            source,
            diagnostics: Vec::new(),
            locations: BTreeMap::new(),
            damage: Vec::new(),
            lists: HashMap::new(),
        }
    }

    pub fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub fn diagnostic(
        &self,
        code: Code,
        span: Span,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::new(code, self.source, span, key, message)
    }

    fn take_syntax_errors(&mut self, errors: &[toml::de::Error]) {
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let text = &self.source.text;
            let from = syntax::line_of(text, span.start.min(text.len()));
            let to = syntax::line_of(text, span.end.min(text.len()));
            self.damage.push(from.start..to.end);
        }
        self.diagnostics = syntax::explain(self.source, errors);
    }

    /// Whether the parser stumbled on a line of `span`.
    fn is_damaged(&self, span: Span) -> bool {
        self.damage
            .iter()
            .any(|damage| span.start <= damage.end && damage.start <= span.end)
    }

    // The file, table by table.

    fn document(&mut self, document: &DeTable<'_>) -> Raw {
        let top = Fields {
            table: document,
            key: String::new(),
            span: Span::of_policy(0..0),
        };
        let version = self.one(&top, &keys::VERSION, Self::version);
        if matches!(version, Given::Missing) && self.damage.is_empty() {
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
            let name_span = Span::of_policy(name_span);
            match name {
                "appliance" => self.appliances(name_span, value, &mut raw),
                "redirect" => self.redirects(value, &mut raw),
                "options" => raw.options = self.options(name_span, value),
                _ if name == keys::VERSION.name => {}
                _ => self.unknown_key(&keys::TOP, "", name, name_span),
            }
        }
        raw
    }

    fn appliances(&mut self, name_span: Span, value: &Spanned<DeValue<'_>>, raw: &mut Raw) {
        let DeValue::Table(table) = value.get_ref() else {
            raw.appliances_complete = false;
            let span = Span::of_policy(value.span());
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
            let span = Span::of_policy(span);
            let key = join("appliance", typed);
            let DeValue::Table(table) = value.get_ref() else {
                raw.appliances_complete = false;
                if !self.is_damaged(Span::of_policy(value.span())) {
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
            let fields = Fields { table, key, span };
            self.check_keys(&fields, &keys::APPLIANCE_TABLE);
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
            let span = Span::of_policy(element.span());
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
            let fields = Fields { table, key, span };
            self.check_keys(&fields, &keys::REDIRECT_TABLE);
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
            let span = Span::of_policy(value.span());
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
        let fields = Fields {
            table,
            key: "options".to_owned(),
            span: name_span,
        };
        self.locations.insert(fields.key.clone(), name_span);
        self.check_keys(&fields, &keys::OPTIONS_TABLE);
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

    // Keys.

    /// Reports the keys that do not belong in `section`.
    fn check_keys(&mut self, fields: &Fields<'_, '_>, section: &Section) {
        for (name, span, _) in entries(fields.table) {
            if section.key(name).is_none() {
                self.unknown_key(section, &fields.key, name, Span::of_policy(span));
            }
        }
    }

    fn unknown_key(&mut self, section: &Section, path: &str, name: &str, span: Span) {
        let elsewhere = keys::SECTIONS
            .iter()
            .find(|other| other.key(name).is_some());
        // After a broken header, its keys are found in the table before.
        if self.is_damaged(span) || (!self.damage.is_empty() && elsewhere.is_some()) {
            return;
        }
        let in_section = if section.header.is_empty() {
            String::new()
        } else {
            format!(" in `{}`", section.header)
        };
        let names = || {
            let tables: &[&str] = if section.header.is_empty() {
                &keys::TABLES
            } else {
                &[]
            };
            section
                .keys
                .iter()
                .map(|key| key.name)
                .chain(tables.iter().copied())
        };
        let diagnostic = self
            .diagnostic(
                Code::UnknownKey,
                span,
                join(path, name),
                format!("there is no key {}{in_section}", quoted(name)),
            )
            .wanted(format!("one of {}", listed(names())));
        let diagnostic = if let Some(other) = elsewhere {
            if other.header.is_empty() {
                diagnostic.hint(format!(
                    "`{name}` belongs at the top of the file, before the first table"
                ))
            } else {
                diagnostic.hint(format!("`{name}` belongs in `{}`", other.header))
            }
        } else if let Some(near) = nearest(name, names()) {
            diagnostic.hint(format!("did you mean `{near}`?"))
        } else if let Some((near, other)) = keys::SECTIONS.iter().find_map(|other| {
            nearest(name, other.keys.iter().map(|key| key.name)).map(|near| (near, other))
        }) {
            diagnostic.hint(format!("did you mean `{near}`, in `{}`?", other.header))
        } else {
            diagnostic
        };
        self.report(diagnostic);
    }

    fn item<'a, 'i>(&mut self, fields: &Fields<'a, 'i>, key: &Key) -> Option<Item<'a, 'i>> {
        let value = fields.table.get(key.name)?;
        let item = Item {
            value: value.get_ref(),
            span: Span::of_policy(value.span()),
            key: join(&fields.key, key.name),
        };
        self.locations.insert(item.key.clone(), item.span);
        Some(item)
    }

    fn missing(&mut self, fields: &Fields<'_, '_>, key: &Key) {
        if key.needed != Needed::Always || !self.damage.is_empty() || fields.key.is_empty() {
            return;
        }
        let diagnostic = self
            .diagnostic(
                Code::MissingKey,
                fields.span,
                join(&fields.key, key.name),
                format!("`{}` is missing here", key.name),
            )
            .wanted(format!("`{} = {}`", key.name, key.example))
            .hint(lower_first(key.summary));
        self.report(diagnostic);
    }

    /// Reads a key that takes one value.
    fn one<'a, 'i, T>(
        &mut self,
        fields: &Fields<'a, 'i>,
        key: &'static Key,
        read: impl Fn(&mut Self, &Item<'a, 'i>) -> Option<T>,
    ) -> Given<T> {
        let Some(item) = self.item(fields, key) else {
            self.missing(fields, key);
            return Given::Missing;
        };
        if self.is_damaged(item.span) {
            return Given::Bad;
        }
        if let DeValue::Array(_) = item.value {
            let diagnostic = self
                .diagnostic(
                    Code::WrongType,
                    item.span,
                    item.key.as_str(),
                    format!("`{}` takes one value, not a list", key.name),
                )
                .found(describe(item.value))
                .wanted(key.kind.wanted());
            self.report(diagnostic);
            return Given::Bad;
        }
        match read(self, &item) {
            Some(value) => Given::Good(Field {
                value,
                span: item.span,
                key: item.key,
            }),
            None => Given::Bad,
        }
    }

    /// Reads a key that takes one value or a list.
    fn many<'a, 'i, T>(
        &mut self,
        fields: &Fields<'a, 'i>,
        key: &'static Key,
        read: impl Fn(&mut Self, &Item<'a, 'i>) -> Option<T>,
    ) -> Many<T> {
        let mut many = Many {
            items: Vec::new(),
            complete: true,
            span: fields.span,
            key: join(&fields.key, key.name),
        };
        let Some(whole) = self.item(fields, key) else {
            self.missing(fields, key);
            many.complete = key.needed != Needed::Always;
            return many;
        };
        many.span = whole.span;
        if self.is_damaged(whole.span) {
            many.complete = false;
            return many;
        }
        let items: Vec<Item<'a, 'i>> = match whole.value {
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| Item {
                    value: item.get_ref(),
                    span: Span::of_policy(item.span()),
                    key: format!("{}[{}]", whole.key, index + 1),
                })
                .collect(),
            _ => vec![whole],
        };
        if items.is_empty() {
            many.complete = false;
            let diagnostic = self
                .diagnostic(
                    Code::EmptyList,
                    many.span,
                    many.key.as_str(),
                    format!("the list `{}` is empty", key.name),
                )
                .wanted(key.kind.wanted());
            self.report(match key.needed {
                Needed::Always => diagnostic,
                _ => diagnostic.hint("leave the key out if there is none"),
            });
        }
        for item in items {
            self.locations.insert(item.key.clone(), item.span);
            match read(self, &item) {
                Some(value) => many.items.push(Field {
                    value,
                    span: item.span,
                    key: item.key,
                }),
                None => many.complete = false,
            }
        }
        many
    }

    fn patterns(&mut self, fields: &Fields<'_, '_>, key: &'static Key) -> Many<IfPattern> {
        let mut many = self.many(fields, key, |reader, item| {
            let pattern = reader.text(item, key, value::interface_pattern)?;
            reader.warn_of_peer(item, &pattern.to_string());
            Some(pattern)
        });
        // Those that another covers go, for the rules would only be longer.
        let mut kept: Vec<Field<IfPattern>> = Vec::new();
        for field in std::mem::take(&mut many.items) {
            if let Some(other) = kept.iter().find(|other| other.value.covers(&field.value)) {
                let diagnostic = self.covered(&field, other);
                self.report(diagnostic);
                continue;
            }
            let (covered, rest) = kept
                .into_iter()
                .partition(|other| field.value.covers(&other.value));
            kept = rest;
            for other in covered {
                let diagnostic = self.covered(&other, &field);
                self.report(diagnostic);
            }
            kept.push(field);
        }
        many.items = kept;
        many
    }

    fn covered(&self, field: &Field<IfPattern>, by: &Field<IfPattern>) -> Diagnostic {
        self.diagnostic(
            Code::CoveredAlready,
            field.span,
            field.key.as_str(),
            if field.value == by.value {
                format!("`{}` is named twice", field.value)
            } else {
                format!("`{}` is one of `{}` already", field.value, by.value)
            },
        )
        .related(self.source, by.span, "named here")
    }

    fn warn_of_peer(&mut self, item: &Item<'_, '_>, name: &str) {
        if let Some(before) = value::shown_with_peer(name) {
            let diagnostic = self
                .diagnostic(
                    Code::OddInterface,
                    item.span,
                    item.key.as_str(),
                    format!("{} looks like the output of `ip link`", quoted(name)),
                )
                .hint(format!(
                    "what follows the `@` is the peer; the interface itself is `{before}`"
                ));
            self.report(diagnostic);
        }
    }

    fn choice<T>(
        &mut self,
        fields: &Fields<'_, '_>,
        key: &'static Key,
        into: &mut T,
        meaning: fn(&str) -> Option<T>,
    ) {
        let given = self.one(fields, key, |reader, item| {
            let word = reader.string(item, key)?;
            if let Some(value) = meaning(word) {
                return Some(value);
            }
            let words: &[(&str, &str)] = match key.kind {
                Kind::Choice(words) => words,
                _ => &[],
            };
            let diagnostic = reader
                .diagnostic(
                    Code::BadChoice,
                    item.span,
                    item.key.as_str(),
                    format!("{} is not a choice for `{}`", quoted(word), key.name),
                )
                .found(describe(item.value))
                .wanted(key.kind.wanted());
            let near = nearest(word, words.iter().map(|(word, _)| *word));
            reader.report(match near {
                Some(near) => diagnostic.hint(format!("did you mean `\"{near}\"`?")),
                None => diagnostic.hint(
                    words
                        .iter()
                        .map(|(word, meaning)| format!("`\"{word}\"`: {meaning}"))
                        .collect::<Vec<_>>()
                        .join("\n"),
                ),
            });
            None
        });
        if let Given::Good(field) = given {
            *into = field.value;
        }
    }

    // Values.

    fn complain(&mut self, span: Span, key: &str, complaint: Complaint, wanted: Option<String>) {
        let mut diagnostic = self.diagnostic(complaint.code, span, key, complaint.message);
        diagnostic.wanted = wanted;
        diagnostic.hint = complaint.hint;
        diagnostic.found = self
            .source
            .text_of(span.file)
            .get(span.start..span.end)
            .map(str::to_owned);
        self.report(diagnostic);
    }

    fn wrong_type(&mut self, item: &Item<'_, '_>, key: &Key, hint: Option<String>) {
        let mut diagnostic = self
            .diagnostic(
                Code::WrongType,
                item.span,
                item.key.as_str(),
                format!("`{}` cannot be {}", key.name, describe(item.value)),
            )
            .found(describe(item.value))
            .wanted(key.kind.wanted());
        diagnostic.hint = hint;
        self.report(diagnostic);
    }

    fn string<'a>(&mut self, item: &Item<'a, '_>, key: &Key) -> Option<&'a str> {
        if let DeValue::String(text) = item.value {
            return Some(text);
        }
        let hint = match item.value {
            DeValue::Integer(number) => Some(format!("a text stands in quotes: `\"{number}\"`")),
            DeValue::Array(_) => Some("lists do not stand within lists".to_owned()),
            _ => None,
        };
        self.wrong_type(item, key, hint);
        None
    }

    fn text<T>(
        &mut self,
        item: &Item<'_, '_>,
        key: &Key,
        read: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<T> {
        let text = self.string(item, key)?;
        match read(text) {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.complain(item.span, &item.key, complaint, Some(key.kind.wanted()));
                None
            }
        }
    }

    fn integer(&mut self, item: &Item<'_, '_>, key: &Key, least: u32, most: u32) -> Option<u32> {
        let DeValue::Integer(number) = item.value else {
            let hint = match item.value {
                DeValue::String(text) if is_number(text) => {
                    Some(format!("without the quotes: `{}`", text.trim()))
                }
                _ => None,
            };
            self.wrong_type(item, key, hint);
            return None;
        };
        let value = i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| (least..=most).contains(value));
        if value.is_none() {
            let diagnostic = self
                .diagnostic(
                    Code::BadNumber,
                    item.span,
                    item.key.as_str(),
                    format!("{} is out of range", quoted(&number.to_string())),
                )
                .found(number.to_string())
                .wanted(key.kind.wanted());
            self.report(diagnostic);
        }
        value
    }

    fn version(&mut self, item: &Item<'_, '_>) -> Option<u32> {
        let version = self.integer(item, &keys::VERSION, 0, u32::MAX)?;
        if version == 1 {
            return Some(version);
        }
        let diagnostic = self
            .diagnostic(
                Code::Version,
                item.span,
                item.key.as_str(),
                format!("policies of version {version} are not known here"),
            )
            .found(version.to_string())
            .wanted(keys::VERSION.kind.wanted());
        self.report(if version > 1 {
            diagnostic.hint("a newer `redirect` may read it; this one reads version 1")
        } else {
            diagnostic
        });
        None
    }

    fn boolean(&mut self, item: &Item<'_, '_>) -> Option<bool> {
        if let DeValue::Boolean(value) = item.value {
            return Some(*value);
        }
        let hint = match item.value {
            DeValue::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Some("without quotes: `true`".to_owned()),
                "false" | "no" | "off" | "0" => Some("without quotes: `false`".to_owned()),
                _ => None,
            },
            DeValue::Integer(number) if number.as_str() == "1" => Some("`true`".to_owned()),
            DeValue::Integer(number) if number.as_str() == "0" => Some("`false`".to_owned()),
            _ => None,
        };
        self.wrong_type(item, &keys::SNAT, hint);
        None
    }

    fn port(&mut self, item: &Item<'_, '_>) -> Option<PortRange> {
        let read = match item.value {
            DeValue::String(text) => value::port(text),
            // Digits alone, so that -1 is no range.
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(
                    |_| value::port(number.as_str()),
                    |n| value::port(&n.to_string()),
                ),
            _ => {
                let hint = match item.value {
                    DeValue::Float(_) => Some("several ports are a list, as in `[22, 3389]`"),
                    DeValue::Array(_) => Some("a range is a text, as in `\"5900-5910\"`"),
                    _ => None,
                };
                self.wrong_type(item, &keys::PORT, hint.map(str::to_owned));
                return None;
            }
        };
        match read {
            Ok(range) => Some(range),
            Err(complaint) => {
                self.complain(
                    item.span,
                    &item.key,
                    complaint,
                    Some(keys::PORT.kind.wanted()),
                );
                None
            }
        }
    }

    fn networks(&mut self, item: &Item<'_, '_>) -> Option<Networks> {
        let DeValue::Table(table) = item.value else {
            return self
                .text(item, &keys::SERVER_NETWORK, value::network)
                .map(Networks::One);
        };
        let mut path = None;
        let mut sound = true;
        for (name, span, value) in entries(table) {
            if name != "file" {
                sound = false;
                let diagnostic = self
                    .diagnostic(
                        Code::UnknownKey,
                        Span::of_policy(span),
                        join(&item.key, name),
                        format!("there is no key {} here", quoted(name)),
                    )
                    .wanted("`file` alone")
                    .hint("`{ file = \"networks.txt\" }`");
                self.report(diagnostic);
                continue;
            }
            let inner = Item {
                value: value.get_ref(),
                span: Span::of_policy(value.span()),
                key: join(&item.key, "file"),
            };
            match inner.value {
                DeValue::String(text) if !text.is_empty() => {
                    path = Some((PathBuf::from(text.as_ref()), inner));
                }
                _ => {
                    sound = false;
                    let diagnostic = self
                        .diagnostic(
                            Code::WrongType,
                            inner.span,
                            inner.key.as_str(),
                            "`file` is not the path of a file",
                        )
                        .found(describe(inner.value))
                        .wanted("a path such as `\"networks.txt\"`");
                    self.report(diagnostic);
                }
            }
        }
        let Some((path, inner)) = path else {
            if sound {
                let diagnostic = self
                    .diagnostic(
                        Code::MissingKey,
                        item.span,
                        join(&item.key, "file"),
                        "`file` is missing here",
                    )
                    .wanted("`{ file = \"networks.txt\" }`");
                self.report(diagnostic);
            }
            return None;
        };
        let list = self.list(&path, &inner)?;
        (sound && list.complete).then_some(Networks::File(list.networks, list.file))
    }

    // List files.

    /// The networks of a list file, its number, and whether every line was sound.
    fn list(&mut self, path: &Path, item: &Item<'_, '_>) -> Option<ListNetworks> {
        if let Some(known) = self.lists.get(path) {
            return known.clone();
        }
        let source = self.source;
        let found = source
            .lists
            .iter()
            .enumerate()
            .find(|(_, list)| list.path == path);
        let read = if let Some((index, list)) = found {
            let file = index + 1;
            let (networks, complete) = self.list_lines(&list.text, file, &item.key);
            if networks.is_empty() && complete {
                let diagnostic = self
                    .diagnostic(
                        Code::EmptyList,
                        item.span,
                        item.key.as_str(),
                        format!("{} lists no network", quoted(&source.name_of(file))),
                    )
                    .wanted("a file with one network a line");
                self.report(diagnostic);
                None
            } else {
                Some(ListNetworks {
                    networks: Rc::new(networks),
                    file,
                    complete,
                })
            }
        } else {
            self.list_unreadable(path, item);
            None
        };
        self.lists.insert(path.to_owned(), read.clone());
        read
    }

    fn list_unreadable(&mut self, path: &Path, item: &Item<'_, '_>) {
        let source = self.source;
        let why = source.unreadable.iter().find(|list| list.path == path);
        let reason = why.map_or("it was not read together with the policy", |why| {
            why.reason.as_str()
        });
        let mut diagnostic = self
            .diagnostic(
                Code::ListUnreadable,
                item.span,
                item.key.as_str(),
                format!("cannot use {}: {reason}", quoted(&source.beside(path))),
            )
            .found(path.display().to_string())
            .wanted("the path of a readable file");
        diagnostic.hint = why.and_then(|why| why.hint.clone());
        self.report(diagnostic);
    }

    fn list_lines(&mut self, text: &str, file: usize, key: &str) -> (Vec<IpNet>, bool) {
        /// Most bad lines of one file that are shown: who has more has the wrong file.
        const SHOWN: usize = 10;
        // About 18 bytes a line in real lists.
        let mut networks = Vec::with_capacity(text.len() / 16);
        let mut bad = 0_usize;
        let mut last_shown = None;
        for (start, line) in lines(text) {
            match value::network(line) {
                Ok(network) => networks.push(network),
                Err(complaint) => {
                    bad += 1;
                    if bad <= SHOWN {
                        let span = Span {
                            file,
                            start,
                            end: start + line.len(),
                        };
                        self.complain(
                            span,
                            key,
                            complaint,
                            Some("one network a line, such as `10.20.0.0/24`".to_owned()),
                        );
                        last_shown = self.diagnostics.len().checked_sub(1);
                    }
                }
            }
        }
        if let Some(last) = last_shown.and_then(|last| self.diagnostics.get_mut(last))
            && bad > SHOWN
        {
            let more = format!(
                "{} more lines of this file are wrong, {} of {} in all",
                bad - SHOWN,
                bad,
                bad + networks.len()
            );
            last.hint = Some(match last.hint.take() {
                Some(hint) => format!("{hint}\n{more}"),
                None => more,
            });
        }
        (networks, bad == 0)
    }
}

/// The networks of a list file as text, and the byte at which each begins: comments
/// and white space taken off, empty lines left out.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    text.split_inclusive('\n').filter_map(move |whole| {
        let at = start;
        start += whole.len();
        let content = match whole.split_once('#') {
            Some((content, _)) => content,
            None => whole,
        };
        // Windows leaves its mark at the beginning of a file, and before every line's end.
        let content = content.trim_end();
        let line = content.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        (!line.is_empty()).then_some((at + content.len() - line.len(), line))
    })
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

fn is_number(text: &str) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a value is, for a message.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", quoted(&format!("\"{text}\""))),
        DeValue::Integer(number) => format!("the integer {}", quoted(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", quoted(number.as_str())),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(date) => format!("the date `{date}`"),
        DeValue::Array(items) if items.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The dotted path of `name` under `path`.
pub fn join(path: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    let name = if bare {
        name.to_owned()
    } else {
        format!("\"{}\"", name.escape_default())
    };
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}

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
    // `ports`, `networks`, `client_interfaces`: near in meaning, whatever the distance.
    names
        .map(|name| {
            let distance = strsim::damerau_levenshtein(&typed, &name.to_ascii_lowercase());
            let part = typed.len() >= 3 && (name.contains(typed.as_str()) || typed.contains(name));
            (if part { distance.min(2) } else { distance }, name)
        })
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn lower_first(text: &str) -> String {
    let mut characters = text.trim_end_matches('.').chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}
