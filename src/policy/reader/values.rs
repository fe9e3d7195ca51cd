//! Values: what stands behind a key, read as what the key wants.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::super::diagnostic::{Code, quoted};
use super::super::keys::Key;
use super::super::list::{self, Line};
use super::super::raw::Networks;
use super::super::source::Span;
use super::super::value::Complaint;
use super::super::{keys, value};
use super::{Item, Reader, entries, is_number, join};
use crate::net::{self, Gathered, PortRange};

/// What a list file holds.
#[derive(Clone)]
pub(super) struct ListNetworks {
    networks: net::Networks,
    /// Its number in [`Span::file`].
    file: usize,
    /// Whether every line was sound.
    complete: bool,
}

impl Reader<'_> {
    pub fn text<T>(
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

    pub fn integer(
        &mut self,
        item: &Item<'_, '_>,
        key: &Key,
        least: u32,
        most: u32,
    ) -> Option<u32> {
        let DeValue::Integer(number) = item.value else {
            let hint = match item.value {
                DeValue::Float(number) => number
                    .as_str()
                    .strip_suffix(".0")
                    .map(|whole| format!("`{whole}`")),
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
                .wanted(key.kind.wanted());
            self.report(diagnostic);
        }
        value
    }

    pub fn version(&mut self, item: &Item<'_, '_>) -> Option<u32> {
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
            .wanted(keys::VERSION.kind.wanted());
        self.report(if version > 1 {
            diagnostic.hint("a newer `redirect` may read it; this one reads version 1")
        } else {
            diagnostic
        });
        None
    }

    pub fn boolean(&mut self, item: &Item<'_, '_>) -> Option<bool> {
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

    pub fn port(&mut self, item: &Item<'_, '_>) -> Option<PortRange> {
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
                    DeValue::Float(number) => Some(match number.as_str().strip_suffix(".0") {
                        Some(whole) => format!("`{whole}`"),
                        None => "several ports are a list, as in `[22, 3389]`".to_owned(),
                    }),
                    DeValue::Array(_) => {
                        Some("a range is a text, as in `\"5900-5910\"`".to_owned())
                    }
                    _ => None,
                };
                self.wrong_type(item, &keys::PORT, hint);
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

    pub fn networks(&mut self, item: &Item<'_, '_>) -> Option<Networks> {
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
                        self.at(span),
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
                span: self.at(value.span()),
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
                        .wanted("a path such as `\"networks.txt\"`");
                    self.report(match inner.value {
                        DeValue::Array(_) => {
                            diagnostic.hint("one `{ file = … }` for each, in a list")
                        }
                        _ => diagnostic,
                    });
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
                    networks: networks.merged(),
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
            .wanted("the path of a readable file");
        diagnostic.hint = why.and_then(|why| why.hint.clone());
        self.report(diagnostic);
    }

    fn list_lines(&mut self, text: &str, file: usize, key: &str) -> (Gathered, bool) {
        /// Most bad lines of one file that are shown: who has more has the wrong file.
        const SHOWN: usize = 10;
        // About 18 bytes a line in real lists.
        let mut networks = Gathered::with_capacity(text.len() / 16);
        let mut bad = 0_usize;
        let mut last_shown = None;
        for line in list::lines(text) {
            let (start, line) = match line {
                Line::Plain(range) => {
                    networks.add_v4(range);
                    continue;
                }
                Line::Text(start, line) => (start, line),
            };
            match value::network(line) {
                Ok(network) => networks.add(network),
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
