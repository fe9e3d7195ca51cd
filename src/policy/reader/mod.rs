//! What every key has in common: found or missing, one value or a list, of the right type or
//! not. What is wrong is noted, and reading goes on.

mod values;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use values::ListNetworks;

use super::diagnostic::{Code, Diagnostic, quoted};
use super::keys::{Key, Kind, Needed, Section};
use super::raw::{Field, Given, Many};
use super::source::{Source, Span};
use super::syntax::{Mistake, Repaired};
use super::value::Complaint;
use super::{keys, syntax, value, words};
use crate::net::IfPattern;

/// A table and its place.
pub struct Fields<'a, 'i> {
    table: &'a DeTable<'i>,
    /// What the table is called.
    pub key: String,
    /// Where it begins.
    span: Span,
    /// Keys that unknown ones probably mean; these are not missing.
    pub meant: Vec<&'static str>,
}

/// A value and its place.
pub struct Item<'a, 'i> {
    pub value: &'a DeValue<'i>,
    pub span: Span,
    pub key: String,
}

/// Walks the document, and collects what there is to say about it.
pub struct Reader<'s> {
    pub source: &'s Source,
    repaired: &'s Repaired,
    diagnostics: Vec<Diagnostic>,
    /// How many were left out.
    omitted: usize,
    pub locations: BTreeMap<String, Span>,
    /// Places of the parser's complaints: values there are not what was typed.
    damage: Vec<Range<usize>>,
    lists: HashMap<PathBuf, Option<ListNetworks>>,
}

impl<'s> Reader<'s> {
    /// Notes the mistakes in the text, for nothing can be said of values that stand there.
    pub fn new(source: &'s Source, repaired: &'s Repaired, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| (mistake.span.start, mistake.span.end));
        let damage = mistakes
            .iter()
            .map(|mistake| {
                let from = syntax::line_of(&source.text, mistake.span.start);
                let to = syntax::line_of(&source.text, mistake.span.end);
                from.start..to.end
            })
            .collect();
        Self {
            source,
            repaired,
            diagnostics: syntax::explain(source, &mistakes),
            omitted: 0,
            locations: BTreeMap::new(),
            damage,
            lists: HashMap::new(),
        }
    }

    /// Whether the text is TOML.
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty()
    }

    /// A place that the parser named.
    pub fn at(&self, parsed: Range<usize>) -> Span {
        Span::of_policy(self.repaired.typed(parsed.start)..self.repaired.typed(parsed.end))
    }

    pub fn report(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            self.omitted += 1;
        } else {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Whether there is enough to read already. Each costs a walk through the file for its line.
    fn is_full(&self) -> bool {
        const MOST: usize = 1000;
        self.diagnostics.len() >= MOST
    }

    /// Everything there was to say, the last of it with how much was left out.
    pub fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        if let Some(last) = self.diagnostics.last_mut().filter(|_| self.omitted > 0) {
            let more = format!("{} more are not listed", self.omitted);
            last.hint = Some(match last.hint.take() {
                Some(hint) => format!("{hint}\n{more}"),
                None => more,
            });
        }
        self.diagnostics
    }

    pub fn diagnostic(
        &self,
        code: Code,
        span: Span,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Diagnostic {
        let span = if self.is_full() {
            Span::of_policy(0..0)
        } else {
            span
        };
        Diagnostic::new(code, self.source, span, key, message)
    }

    /// Whether the parser stumbled on a line of `span`.
    pub fn is_damaged(&self, span: Span) -> bool {
        // In a file that is hardly TOML, everything is.
        self.damage.len() > syntax::MOST
            || self
                .damage
                .iter()
                .any(|damage| span.start <= damage.end && damage.start <= span.end)
    }

    // Keys.

    /// The keys of `table`. Reports those that do not belong in `section`.
    pub fn fields<'a, 'i>(
        &mut self,
        table: &'a DeTable<'i>,
        key: String,
        span: Span,
        section: &Section,
    ) -> Fields<'a, 'i> {
        let mut meant = Vec::new();
        for (name, span, _) in entries(table) {
            let table = section.header.is_empty() && keys::TABLES.contains(&name);
            if section.key(name).is_none() && !table {
                meant.extend(self.unknown_key(section, &key, name, self.at(span)));
            }
        }
        Fields {
            table,
            key,
            span,
            meant,
        }
    }

    /// Whether nothing can be said of the absence of `key`: the file is damaged, or it was misspelt.
    pub fn is_meant(&self, fields: &Fields<'_, '_>, key: &Key) -> bool {
        !self.damage.is_empty() || fields.meant.contains(&key.name)
    }

    /// Reports a key that does not belong in `section`; returns the one that it probably means.
    fn unknown_key(
        &mut self,
        section: &Section,
        path: &str,
        name: &str,
        span: Span,
    ) -> Option<&'static str> {
        let elsewhere = keys::SECTIONS
            .iter()
            .find(|other| other.key(name).is_some());
        // After a broken header, its keys are found in the table before.
        if self.is_damaged(span) || (!self.damage.is_empty() && elsewhere.is_some()) {
            return None;
        }
        let in_section = if section.header.is_empty() {
            String::new()
        } else {
            format!(" in `{}`", section.header)
        };
        let tables: &[&'static str] = if section.header.is_empty() {
            &keys::TABLES
        } else {
            &[]
        };
        let names = || {
            let keys = section.keys.iter().map(|key| key.name);
            keys.chain(tables.iter().copied())
        };
        let diagnostic = self.diagnostic(
            Code::UnknownKey,
            span,
            join(path, name),
            format!("there is no key {}{in_section}", quoted(name)),
        );
        let place = |section: &Section| match section.header {
            "" => "at the top of the file, before the first table".to_owned(),
            header => format!("in `{header}`"),
        };
        let mut meant = None;
        let diagnostic = if let Some(other) = elsewhere {
            let belongs = format!("`{name}` belongs {}", place(other));
            meant = keys::meant_by(name, names());
            match meant {
                Some(near) => diagnostic
                    .wanted(format!("`{near}`"))
                    .hint(format!("did you mean `{near}`? {belongs}")),
                None => diagnostic
                    .wanted(format!("one of {}", words::listed(names())))
                    .hint(belongs),
            }
        } else if let Some(near) = keys::meant_by(name, names()) {
            meant = Some(near);
            diagnostic
                .wanted(format!("`{near}`"))
                .hint(format!("did you mean `{near}`?"))
        } else {
            let near = keys::SECTIONS.iter().find_map(|other| {
                let names = other.keys.iter().map(|key| key.name);
                keys::meant_by(name, names).map(|near| (near, other))
            });
            let diagnostic = diagnostic.wanted(format!("one of {}", words::listed(names())));
            match (keys::no_such_key(name), near) {
                (Some(why), _) => diagnostic.hint(why),
                (None, Some((near, other))) => {
                    diagnostic.hint(format!("did you mean `{near}`, {}?", place(other)))
                }
                (None, None) => diagnostic,
            }
        };
        self.report(diagnostic);
        meant
    }

    fn item<'a, 'i>(&mut self, fields: &Fields<'a, 'i>, key: &Key) -> Option<Item<'a, 'i>> {
        let value = fields.table.get(key.name)?;
        let item = Item {
            value: value.get_ref(),
            span: self.at(value.span()),
            key: join(&fields.key, key.name),
        };
        self.locations.insert(item.key.clone(), item.span);
        Some(item)
    }

    fn missing(&mut self, fields: &Fields<'_, '_>, key: &Key) {
        if key.needed != Needed::Always || self.is_meant(fields, key) || fields.key.is_empty() {
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
            .hint(words::lower_first(key.summary));
        self.report(diagnostic);
    }

    /// Reads a key that takes one value.
    pub fn one<'a, 'i, T>(
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
        if let DeValue::Array(items) = item.value {
            let mut diagnostic = self
                .diagnostic(
                    Code::WrongType,
                    item.span,
                    item.key.as_str(),
                    format!("`{}` takes one value, not a list", key.name),
                )
                .wanted(key.kind.wanted());
            diagnostic.hint = if items.len() == 1 {
                Some("without the brackets".to_owned())
            } else if key.kind == Kind::Interface {
                Some("an appliance is reached by one interface".to_owned())
            } else if key.name == keys::APPLIANCE.name {
                Some(
                    "one redirect goes to one appliance: write a `[[redirect]]` for each"
                        .to_owned(),
                )
            } else {
                None
            };
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
    pub fn many<'a, 'i, T>(
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
                    span: self.at(item.span()),
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

    pub fn patterns(&mut self, fields: &Fields<'_, '_>, key: &'static Key) -> Many<IfPattern> {
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

    pub fn warn_of_peer(&mut self, item: &Item<'_, '_>, name: &str) {
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

    pub fn choice<T>(
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
                .wanted(key.kind.wanted());
            let near = words::nearest(word, words.iter().map(|(word, _)| *word));
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

    pub fn complain(
        &mut self,
        span: Span,
        key: &str,
        complaint: Complaint,
        wanted: Option<String>,
    ) {
        let mut diagnostic = self.diagnostic(complaint.code, span, key, complaint.message);
        diagnostic.wanted = wanted;
        diagnostic.hint = complaint.hint;
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
            .wanted(key.kind.wanted());
        diagnostic.hint = hint;
        self.report(diagnostic);
    }

    fn string<'a>(&mut self, item: &Item<'a, '_>, key: &Key) -> Option<&'a str> {
        if let DeValue::String(text) = item.value {
            return Some(text);
        }
        let hint = match item.value {
            DeValue::Integer(number) if key.name == keys::RP_FILTER.name => {
                Some(match number.as_str() {
                    "0" => "`\"off\"` writes 0".to_owned(),
                    "1" => "a strict filter drops what the appliance sends".to_owned(),
                    _ => "`\"loose\"` writes 2 where it has to".to_owned(),
                })
            }
            DeValue::Boolean(false) if key.name == keys::RP_FILTER.name => {
                Some("`\"off\"`".to_owned())
            }
            DeValue::Integer(number)
                if matches!(
                    key.kind,
                    Kind::Name | Kind::Interface | Kind::InterfacePattern
                ) =>
            {
                Some(format!("a text stands in quotes: `\"{number}\"`"))
            }
            DeValue::Array(_) => Some("lists do not stand within lists".to_owned()),
            _ => None,
        };
        self.wrong_type(item, key, hint);
        None
    }
}

fn is_number(text: &str) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a value is, for a message.
pub fn describe(value: &DeValue<'_>) -> String {
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

/// A list's items, or the one value.
pub fn elements<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Vec<&'a Spanned<DeValue<'i>>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    }
}

/// A table's keys, where each stands, and their values, in order of appearance (the parser sorts them by name).
pub fn entries<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a str, Range<usize>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
        .collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}
