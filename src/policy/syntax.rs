//! What the TOML parser says, said so that somebody who does not know TOML can act on it; and
//! what it takes for it to go on where it would give up.

use std::ops::Range;

use toml::de::{DeTable, Error};

use super::diagnostic::{Code, Diagnostic, quoted};
use super::source::{Source, Span};
use super::{keys, value};

/// Most mistakes that are told. A file with more of them is not TOML at all.
pub const MOST: usize = 1000;

/// A mistake in the text as TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, in bytes.
    pub span: Range<usize>,
    /// The parser's words.
    message: String,
}

/// A text in which the parser finds more than in the one that was typed.
#[derive(Debug, Default)]
pub struct Repaired {
    /// To be parsed.
    pub text: String,
    /// Where a byte was put in, ascending, as places in `text`.
    insertions: Vec<usize>,
}

impl Repaired {
    /// Where the byte at `at` stands in the text that was typed.
    pub fn typed(&self, at: usize) -> usize {
        at - self.insertions.partition_point(|inserted| *inserted < at)
    }
}

/// Mends what keeps the parser from going on: it stops at a key without a value, and a header that
/// is not closed opens no table. Returns what is to be parsed, and the mistakes mended.
pub fn repair(text: &str) -> (Repaired, Vec<Mistake>) {
    let (_, errors) = DeTable::parse_recoverable(text);
    let mut mistakes = mistakes(text, &errors, |at| at);
    mistakes.retain(|mistake| {
        mistake.message.starts_with("unclosed table")
            || mistake.message.starts_with("unclosed array table")
            || mistake.message.starts_with("key with no value")
    });
    let mut repaired = Repaired::default();
    let mut done = 0;
    let mut last_line = None;
    for mistake in &mistakes {
        let line = line_of(text, mistake.span.start);
        if last_line.as_ref() == Some(&line) || line.start < done {
            continue;
        }
        let content = text.get(line.clone()).unwrap_or_default();
        repaired
            .text
            .push_str(text.get(done..line.start).unwrap_or_default());
        done = line.end;
        if let Some(brackets) = content.trim_start().strip_prefix('[') {
            let opened = 1 + usize::from(brackets.starts_with('['));
            let header = content.split('#').next().unwrap_or_default().trim_end();
            repaired.text.push_str(header);
            for _ in header.matches(']').count()..opened {
                repaired.insertions.push(repaired.text.len());
                repaired.text.push(']');
            }
            repaired
                .text
                .push_str(content.get(header.len()..).unwrap_or_default());
        } else if let Some((key, value)) = colon_for_equals(content) {
            repaired.text.push_str(key);
            repaired.text.push('=');
            repaired.text.push_str(value);
        } else {
            // As many bytes, so that all that follows stays where it is.
            repaired
                .text
                .extend(std::iter::repeat_n(' ', content.len()));
        }
        last_line = Some(line);
    }
    repaired.text.push_str(text.get(done..).unwrap_or_default());
    (repaired, mistakes)
}

/// The parser's errors, `typed` telling where each place stands in what was typed.
pub fn mistakes(text: &str, errors: &[Error], typed: impl Fn(usize) -> usize) -> Vec<Mistake> {
    let mut mistakes: Vec<_> = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or(0..0);
            let start = span.start.min(text.len());
            let end = span.end.clamp(start, text.len());
            Mistake {
                span: typed(start)..typed(end),
                message: error.message().to_owned(),
            }
        })
        .collect();
    mistakes.sort_by_key(|mistake| (mistake.span.start, mistake.span.end));
    mistakes
}

/// All that is wrong with the text as TOML. `mistakes` are sorted by place.
pub fn explain(source: &Source, mistakes: &[Mistake]) -> Vec<Diagnostic> {
    let text = source.text.as_str();
    if let Some(foreign) = another_format(source, mistakes) {
        return vec![foreign];
    }
    let mut explained: Vec<Diagnostic> = Vec::new();
    let unclosed = unclosed_list(source, mistakes);
    // One mistake often makes the parser stumble several times on a line: the first says it best.
    let mut last_line = None;
    // Under a header that stands twice, every key of the first table is a duplicate as well.
    let mut under_duplicate = false;
    for Mistake { span, message } in mistakes {
        if explained.len() >= MOST {
            break;
        }
        // A list that is not closed swallows the lines that follow, and the parser stumbles on each.
        let swallowed = unclosed
            .as_ref()
            .is_some_and(|(list, _)| list.contains(&span.start) || list.end == span.start);
        let line = line_of(text, span.start);
        if swallowed || last_line.as_ref() == Some(&line) {
            continue;
        }
        let content = text.get(line.clone()).unwrap_or_default();
        let header = content.trim_start().starts_with('[');
        let duplicate = message.starts_with("duplicate key");
        if header {
            under_duplicate = duplicate;
        } else if duplicate && under_duplicate && !header_between(text, &explained, line.start) {
            continue;
        }
        explained.push(one(source, span, message, &line));
        last_line = Some(line);
    }
    explained.extend(unclosed.map(|(_, diagnostic)| diagnostic));
    explained
}

/// A file that is JSON or YAML: one error says so, instead of one a line.
fn another_format(source: &Source, mistakes: &[Mistake]) -> Option<Diagnostic> {
    let text = source.text.as_str();
    let first = mistakes.first()?;
    let start = text.len()
        - text
            .trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
            .len();
    let line = line_of(text, start);
    let content = text.get(start..line.end).unwrap_or_default();
    let colons = mistakes
        .iter()
        .map(|mistake| line_of(text, mistake.span.start))
        .filter(|line| colon_for_equals(text.get(line.clone()).unwrap_or_default()).is_some());
    let format = if content.starts_with('{') && first.span.start <= line.end {
        "JSON"
    } else if content.trim_end() == "---" || (colons.count() > 2 && !text.contains('=')) {
        "YAML"
    } else {
        return None;
    };
    let diagnostic = Diagnostic::new(
        Code::Syntax,
        source,
        Span::of_policy(start..line.end),
        "",
        format!("this looks like {format}"),
    );
    Some(diagnostic.wanted("TOML").hint(
        "version = 1\n\n[appliance.scb]\naddress = \"10.30.0.2\"\ninterface = \"sps0\"\n\n[[redirect]]\nname = \"rdp\"\n…",
    ))
}

/// The list, or inline table, whose end was not found: from where it probably begins to where the
/// parser missed its end.
fn unclosed_list(source: &Source, mistakes: &[Mistake]) -> Option<(Range<usize>, Diagnostic)> {
    let text = source.text.as_str();
    let (end, list) = mistakes.iter().rev().find_map(|mistake| {
        let list = mistake.message.starts_with("unclosed array, ");
        (list || mistake.message.starts_with("unclosed inline table"))
            .then_some((mistake.span.start, list))
    })?;
    // The next key is the first that surely does not belong into a list.
    let swallowed = mistakes
        .iter()
        .find(|mistake| mistake.message.starts_with("unexpected `=` in array"))
        .map_or(end, |mistake| line_of(text, mistake.span.start).start);
    let bracket = if list { '[' } else { '{' };
    let start = text.get(..swallowed)?.rfind(bracket)?;
    let line = line_of(text, start);
    let (what, wanted) = if list {
        ("list", "`]` at its end")
    } else {
        ("inline table", "`}` at its end")
    };
    let diagnostic = Diagnostic::new(
        Code::Syntax,
        source,
        Span::of_policy(start..start + 1),
        key_of(text, &line),
        format!("this {what} is not closed"),
    )
    .wanted(wanted);
    Some((start..end, diagnostic))
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
        let key = key_of(text, line);
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
    if let Some((key, _)) = colon_for_equals(content) {
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
    let character = text.get(span.start..).and_then(|rest| rest.chars().next());
    if let Some(character) =
        character.filter(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        let message = format!("the control character U+{:04X}", u32::from(character));
        return make(span.start..span.start + character.len_utf8(), message)
            .hint("take it out: it cannot be seen, and TOML does not allow it");
    }
    if let Some(unbracketed) = unbracketed_list(content) {
        return make(span.clone(), "several values without brackets".to_owned())
            .hint(format!("a list: `{unbracketed}`"));
    }
    if let Some(token) = bare_value(text, span, line) {
        return bare(
            text.get(token.clone()).unwrap_or_default(),
            make(token.clone(), String::new()),
        );
    }
    let said = |message: &str| make(span.clone(), message.to_owned());
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    match what {
        "unclosed table" | "unclosed array table" => said("this header is not closed")
            .wanted("`]` for each `[`")
            .hint("tables are written `[appliance.NAME]`, `[[redirect]]` and `[options]`"),
        "invalid basic string" | "invalid literal string"
            if content.matches(expected.trim_matches('`')).count() % 2 == 1 =>
        {
            said("this text is not closed").wanted(format!("{expected} at its end"))
        }
        "key with no value" if key_with_spaces(content).is_some() => {
            let key = key_with_spaces(content).unwrap_or_default();
            said("a key has no spaces")
                .wanted("`=` here")
                .hint(format!("did you mean `{key}`?"))
        }
        "key with no value" => said("a key without a value")
            .wanted("`=` and a value")
            .hint("every line is `key = value`, a `[table]`, or a `# comment`"),
        "missing escaped value" => said("`\\` means something special in `\"…\"`")
            .hint("write `'…'` instead: everything within is taken as it is"),
        "missing comma between array elements" => {
            said("a comma is missing between this and the value before").wanted("`,` before this")
        }
        "unexpected key or value" => {
            said("something follows the value").wanted("the end of the line, or a `# comment`")
        }
        "unquoted keys cannot be empty" | "missing key" => {
            said("a value without a key").wanted("`key = value`")
        }
        _ => make(span.clone(), plain_words(message)),
    }
}

/// `server network = …`: the key without spaces, if it is one of ours.
fn key_with_spaces(content: &str) -> Option<String> {
    let (key, _) = content.split_once('=')?;
    let words: Vec<_> = key.split_whitespace().collect();
    let key = words.join("_");
    let known = keys::SECTIONS
        .iter()
        .any(|section| section.key(&key).is_some());
    (words.len() > 1 && known).then_some(key)
}

/// `port = 22, 3389` as it should be.
fn unbracketed_list(content: &str) -> Option<String> {
    let (key, values) = content.split_once('=')?;
    let values = values.split('#').next()?.trim();
    let sound = is_bare(key.trim())
        && values.contains(',')
        && !values.contains(['[', ']', '{', '}', '='])
        && values.split(',').all(|value| !value.trim().is_empty());
    if !sound {
        return None;
    }
    let values: Vec<_> = values
        .split(',')
        .map(|value| {
            let value = value.trim();
            if value.starts_with(['"', '\'']) || value.bytes().all(|byte| byte.is_ascii_digit()) {
                value.to_owned()
            } else {
                format!("\"{value}\"")
            }
        })
        .collect();
    Some(format!("{} = [{}]", key.trim(), values.join(", ")))
}

fn duplicate(content: &str, made: &Diagnostic, text: &str, span: &Range<usize>) -> Diagnostic {
    let mut made = made.clone();
    let name = text.get(span.clone()).unwrap_or_default();
    let header = content.trim();
    made.message = format!("{} is here for the second time", quoted(name));
    if header.starts_with("[redirect]") {
        made.hint("several redirects are written with double brackets, each: `[[redirect]]`")
    } else if header.starts_with("[appliance.") {
        made.hint("two appliances have two names; what belongs to one stands under one header")
    } else if header.starts_with('[') {
        made.hint("write everything under the first of them")
    } else {
        made.hint("take one of them out; several values for one key are a list: `[… , …]`")
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
    // In a string that somebody forgot to close, quotes are not what is missing; nor in a comment.
    // And what follows a whole text is one too many, unless it follows in a list.
    let between = content.get(equals..start)?;
    let odd = between.matches(['"', '\'']).count() % 2 == 1;
    let after_text = between
        .rfind(['"', '\''])
        .is_some_and(|quote| !between.get(quote..).unwrap_or_default().contains(','));
    (end > start && !odd && !after_text && !between.contains('#'))
        .then_some(line.start + start..line.start + end)
}

/// A value that TOML would have in quotes, or in other words.
fn bare(token: &str, made: Diagnostic) -> Diagnostic {
    let mut made = made;
    let lower = token.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "yes" | "on" | "enabled" => {
            made.message = format!("{} is not a value", quoted(token));
            return made.hint("`true`");
        }
        "false" | "no" | "off" | "disabled" => {
            made.message = format!("{} is not a value", quoted(token));
            let option = made.key.ends_with("rp_filter");
            return made.hint(if option { "`\"off\"`" } else { "`false`" });
        }
        _ => {}
    }
    let decimal = lower.bytes().all(|byte| byte.is_ascii_digit());
    if lower.bytes().all(|byte| byte.is_ascii_hexdigit()) && !decimal {
        made.message = format!("{} needs quotes, or `0x` before it", quoted(token));
        return made.hint(format!(
            "a text is `\"{token}\"`, a hexadecimal number `0x{token}`"
        ));
    }
    if token.starts_with('0') && decimal {
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

/// `key: value`, with what stands before the colon and after it.
fn colon_for_equals(content: &str) -> Option<(&str, &str)> {
    content
        .split_once(':')
        .filter(|(key, _)| !content.contains('=') && is_bare(key.trim()))
}

/// The dotted path of the key that a line gives a value to, as far as the text shows it.
fn key_of(text: &str, line: &Range<usize>) -> String {
    let content = text.get(line.clone()).unwrap_or_default();
    let key = content
        .split_once('=')
        .or_else(|| colon_for_equals(content))
        .map(|(key, _)| key.trim())
        .filter(|key| is_bare(key));
    let Some(key) = key else {
        return String::new();
    };
    let mut table = String::new();
    let mut redirects = 0;
    for header in text.get(..line.start).unwrap_or_default().lines() {
        let header = header.split('#').next().unwrap_or_default().trim();
        if let Some(name) = header.strip_prefix("[[") {
            redirects += usize::from(name.starts_with("redirect"));
            table = format!("redirect[{redirects}].");
        } else if let Some(name) = header.strip_prefix('[') {
            let name = name.trim_end_matches(']');
            // A line of a list may begin so too.
            if is_bare(name) {
                table = format!("{name}.");
            }
        }
    }
    format!("{table}{key}")
}

fn is_bare(key: &str) -> bool {
    !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}
