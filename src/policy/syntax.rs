//! What the TOML parser says, said so that somebody who does not know TOML can act on it.

use std::ops::Range;

use toml::de::Error;

use super::diagnostic::{Code, Diagnostic, quoted};
use super::source::{Source, Span};
use super::value;

/// All that is wrong with the text as TOML.
pub fn explain(source: &Source, errors: &[Error]) -> Vec<Diagnostic> {
    let text = source.text.as_str();
    let mut explained: Vec<Diagnostic> = Vec::new();
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (place_of(text, error), error.message()))
        .collect();
    errors.sort_by_key(|(span, _)| (span.start, span.end));
    // One mistake often makes the parser stumble several times on a line: the first says it best.
    let mut last_line = None;
    // Under a header that stands twice, every key of the first table is a duplicate as well.
    let mut under_duplicate = false;
    for (span, message) in errors {
        let line = line_of(text, span.start);
        if last_line.as_ref() == Some(&line) {
            continue;
        }
        let header = text
            .get(line.clone())
            .is_some_and(|line| line.trim_start().starts_with('['));
        let duplicate = message.starts_with("duplicate key");
        if header {
            under_duplicate = duplicate;
        } else if duplicate && under_duplicate && !header_between(text, &explained, line.start) {
            continue;
        }
        last_line = Some(line.clone());
        explained.push(one(source, &span, message, &line));
    }
    explained
}

/// Whether a table header stands between the last explained error and `at`.
fn header_between(text: &str, explained: &[Diagnostic], at: usize) -> bool {
    let from = explained.last().map_or(0, |last| last.place.span.end);
    text.get(from..at).is_some_and(|between| {
        between
            .lines()
            .skip(1)
            .any(|line| line.trim_start().starts_with('['))
    })
}

fn place_of(text: &str, error: &Error) -> Range<usize> {
    let span = error.span().unwrap_or(0..0);
    let start = span.start.min(text.len());
    start..span.end.clamp(start, text.len())
}

/// The line that `at` stands in, without its end.
pub fn line_of(text: &str, at: usize) -> Range<usize> {
    let start = text
        .get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let end = text
        .get(at..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |newline| at + newline);
    start..end
}

fn one(source: &Source, span: &Range<usize>, message: &str, line: &Range<usize>) -> Diagnostic {
    let text = source.text.as_str();
    let content = text.get(line.clone()).unwrap_or_default();
    let make = |range: Range<usize>, message: String| {
        let key = key_of(content);
        Diagnostic::new(Code::Syntax, source, Span::of_policy(range), key, message)
    };
    if message.starts_with("duplicate key") {
        return duplicate(content, &make(span.clone(), String::new()), text, span);
    }
    if let Some(curly) = content.find(['“', '”', '„', '‘', '’']) {
        let at = line.start + curly;
        let end = at
            + text
                .get(at..)
                .and_then(|rest| rest.chars().next())
                .map_or(0, char::len_utf8);
        return make(at..end, "a typographic quote instead of `\"`".to_owned())
            .hint("write `\"` on both sides; a word processor has changed it");
    }
    if let Some((key, _)) = content
        .split_once(':')
        .filter(|(key, _)| !content.contains('=') && is_bare(key.trim()))
    {
        let at = line.start + key.len();
        return make(at..at + 1, "`:` between a key and its value".to_owned())
            .wanted("`=`")
            .hint(format!("`{} = …`", key.trim()));
    }
    if content.trim_start().starts_with("//") || content.trim_start().starts_with(';') {
        let at = line.start + content.len() - content.trim_start().len();
        return make(at..line.end, "this line is no comment".to_owned())
            .hint("comments begin with `#`");
    }
    if let Some(token) = bare_value(text, span, line) {
        return bare(
            text.get(token.clone()).unwrap_or_default(),
            make(token.clone(), String::new()),
        );
    }
    let plain = make(span.clone(), plain_words(message));
    if content.trim_start().starts_with('[') && message.starts_with("unclosed") {
        return plain.hint("tables are written `[appliance.NAME]`, `[[redirect]]` and `[options]`");
    }
    if message.starts_with("unexpected key or value")
        && content.contains(',')
        && !content.contains('[')
    {
        return plain.hint("several values are a list: `[… , …]`");
    }
    if message.starts_with("key with no value") {
        return plain.hint("every line is `key = value`, a `[table]`, or a `# comment`");
    }
    plain
}

fn duplicate(content: &str, made: &Diagnostic, text: &str, span: &Range<usize>) -> Diagnostic {
    let mut made = made.clone();
    let name = text.get(span.clone()).unwrap_or_default();
    let header = content.trim();
    made.message = format!("{} is here for the second time", quoted(name));
    if header.starts_with("[redirect]") {
        made.hint("several redirects are written with double brackets, each: `[[redirect]]`")
    } else if header.starts_with('[') {
        made.hint("write everything under the first of them")
    } else {
        made.hint("several values for one key are a list: `[… , …]`")
    }
}

/// The value without quotes that the error is about, if it is about one.
fn bare_value(text: &str, span: &Range<usize>, line: &Range<usize>) -> Option<Range<usize>> {
    let content = text.get(line.clone())?;
    let equals = content.find('=')?;
    let at = span
        .start
        .checked_sub(line.start)
        .filter(|at| *at > equals)?;
    let ends = |c: char| {
        matches!(c, ',' | '[' | ']' | '=' | '#' | '"' | '\'' | '{' | '}') || c.is_whitespace()
    };
    let before = content.get(..at)?;
    let start = before.rfind(ends).map_or(0, |found| {
        found
            + before
                .get(found..)
                .and_then(|rest| rest.chars().next())
                .map_or(1, char::len_utf8)
    });
    let rest = content.get(start..)?;
    let end = start + rest.find(ends).unwrap_or(rest.len());
    // In a string that somebody forgot to close, quotes are not what is missing.
    let quotes = content.get(equals..start)?.matches(['"', '\'']).count();
    (end > start && quotes % 2 == 0).then_some(line.start + start..line.start + end)
}

/// A value that TOML would have in quotes, or in other words.
fn bare(token: &str, made: Diagnostic) -> Diagnostic {
    let mut made = made.found(quoted(token));
    let lower = token.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "yes" | "on" | "enabled" => {
            made.message = format!("{} is not a value", quoted(token));
            return made.hint("`true`");
        }
        "false" | "no" | "off" | "disabled" => {
            made.message = format!("{} is not a value", quoted(token));
            return made.hint(if lower == "off" {
                "`false`, or `\"off\"` for `rp_filter`"
            } else {
                "`false`"
            });
        }
        _ => {}
    }
    if !lower.starts_with("0x")
        && lower.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !token.starts_with('0')
    {
        made.message = format!("{} needs quotes, or `0x` before it", quoted(token));
        return made.hint(format!(
            "a text is `\"{token}\"`, a hexadecimal number `0x{token}`"
        ));
    }
    if token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()) {
        made.message = format!("{} has leading zeros", quoted(token));
        let number = token.trim_start_matches('0');
        return made.hint(format!(
            "`{}`",
            if number.is_empty() { "0" } else { number }
        ));
    }
    made.message = format!("{} needs quotes", quoted(token));
    let what = if value::port(token).is_ok() {
        "a range of ports is a text"
    } else if value::network(token).is_ok() {
        "an address is a text"
    } else {
        "a text stands in quotes"
    };
    made.hint(format!("{what}: `\"{token}\"`"))
}

/// The parser's words, less terse.
fn plain_words(message: &str) -> String {
    match message.split_once(", expected ") {
        Some((what, "nothing")) => what.to_owned(),
        Some((what, expected)) => format!("{what}; here could stand: {expected}"),
        None => message.to_owned(),
    }
}

/// The key that a line gives a value to, as it stands there.
fn key_of(content: &str) -> String {
    content
        .split_once('=')
        .map(|(key, _)| key.trim())
        .filter(|key| is_bare(key))
        .unwrap_or_default()
        .to_owned()
}

fn is_bare(key: &str) -> bool {
    !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}
