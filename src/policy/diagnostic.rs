//! What is wrong with a policy, where, and what to do about it.
//!
//! A [`Diagnostic`] is data: `--json` prints it as it is, and [`render`] shows it as
//! rustc would, with the line of the policy and a caret under the place.

use std::fmt::{self, Write as _};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::source::{Place, Source, Span};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy is refused.
    Error,
    /// The policy is taken, but hardly meant so.
    Warning,
}

macro_rules! codes {
    ($($name:ident = $code:literal, $severity:ident, $summary:literal;)*) => {
        /// What kind of diagnostic it is. The texts of messages may change, these never do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Code {
            $(
                #[doc = $summary]
                #[serde(rename = $code)]
                $name,
            )*
        }

        impl Code {
            /// All of them, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Such as `P012`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// How bad it is.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),* }
            }

            /// What it is about, in one sentence.
            #[must_use]
            pub fn summary(self) -> &'static str {
                match self { $(Self::$name => $summary),* }
            }
        }
    };
}

codes! {
    Syntax = "P001", Error, "The file is not TOML.";
    UnknownKey = "P002", Error, "No such key, or not in this place.";
    MissingKey = "P003", Error, "A key that must be given is not.";
    WrongType = "P004", Error, "A value of another type is wanted.";
    BadChoice = "P005", Error, "One of a few words is wanted.";
    EmptyList = "P006", Error, "A list must hold something.";
    Version = "P007", Error, "The policy is of a version that this program does not read.";
    ListUnreadable = "P008", Error, "A list file cannot be read, or others may write it.";
    BadNumber = "P009", Error, "A number is out of its range.";
    BadName = "P010", Error, "Not the name of an appliance or a redirect.";
    NameTwice = "P011", Error, "Two redirects have the same name.";
    BadInterface = "P012", Error, "Not the name of an interface.";
    BadAddress = "P013", Error, "Not an address an appliance can have.";
    BadMac = "P014", Error, "Not the MAC address of a machine.";
    BadNetwork = "P015", Error, "Not a network.";
    HostBits = "P016", Error, "An address with a prefix length that cuts it off.";
    BadPort = "P017", Error, "Not a TCP port, nor a range of them.";
    TwoAddresses = "P020", Error, "An appliance has two addresses of one family.";
    TableReserved = "P021", Error, "The kernel keeps this routing table for itself.";
    TableTwice = "P022", Error, "Two appliances have the same routing table.";
    MarkOutsideMask = "P023", Error, "A mark is 0, or has bits outside `mark_mask`.";
    MarkTwice = "P024", Error, "Two appliances have the same mark.";
    MaskTooSmall = "P025", Error, "`mark_mask` has no room for so many appliances.";
    PriorityTooHigh = "P026", Error, "A rule would stand behind that of the main table.";
    UnknownAppliance = "P030", Error, "No appliance of this name.";
    WhichAppliance = "P031", Error, "There are several appliances, and the redirect names none.";
    NothingToDo = "P032", Error, "There is no appliance, or no redirect.";
    SharedInterface = "P033", Error, "The router could not tell who sent a packet.";
    ApplianceAmongServers = "P034", Error, "An appliance stands inside its own server networks.";
    NoAddressOfFamily = "P035", Error, "Servers of a family of which the appliance has no address.";
    Overlap = "P036", Error, "Two redirects would send the same sessions to different appliances.";
    NothingLeft = "P037", Error, "The exceptions leave nothing of the redirect.";
    UnusedAppliance = "P050", Warning, "No redirect uses this appliance.";
    CoveredAlready = "P051", Warning, "An interface is named twice.";
    IdleException = "P052", Warning, "An exception that excepts nothing.";
    OddInterface = "P053", Warning, "An interface name as `ip link` shows it, with its peer.";
    Chained = "P054", Warning, "What one appliance sends would be redirected to another.";
    Router = "P060", Error, "The router does not suit the policy.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Another place that has to do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What it has to do with it.
    pub message: String,
}

/// Something to say about a place in the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// What is wrong, in one line.
    pub message: String,
    /// The dotted path of the key, list items counted from 1: `redirect[2].port[1]`.
    /// Empty where no key can be told.
    pub key: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What stands there, as typed; not where something is missing.
    pub found: Option<String>,
    /// What should stand there.
    pub wanted: Option<String>,
    /// Other places that have to do with it.
    pub related: Vec<Related>,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// A diagnostic about `span` of `source`, which is the value of `key`.
    #[must_use]
    pub fn new(
        code: Code,
        source: &Source,
        span: Span,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity: code.severity(),
            code,
            message: message.into(),
            key: key.into(),
            place: source.place(span),
            found: None,
            wanted: None,
            related: Vec::new(),
            hint: None,
        }
    }

    /// Says what should stand there.
    #[must_use]
    pub fn wanted(mut self, wanted: impl Into<String>) -> Self {
        self.wanted = Some(wanted.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Points to another place.
    #[must_use]
    pub fn related(mut self, source: &Source, span: Span, message: impl Into<String>) -> Self {
        self.related.push(Related {
            place: source.place(span),
            message: message.into(),
        });
        self
    }
}

impl fmt::Display for Diagnostic {
    /// In one line, without the source: `policy.toml:7:13: error[P012]: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { position, .. } = &self.place;
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{}:{}:{}: {severity}[{}]: {}",
            visible(&position.file),
            position.line,
            position.column,
            self.code,
            visible(&self.message)
        )
    }
}

/// Why a policy was refused: everything that is wrong with it, and what else was noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PolicyErrors {
    /// In order of appearance, warnings among them. At least one is an error.
    pub diagnostics: Vec<Diagnostic>,
}

impl PolicyErrors {
    /// How many of them are errors.
    #[must_use]
    pub fn count(&self) -> usize {
        self.diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .count()
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// How diagnostics are to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// With ANSI colours. They carry no meaning of their own.
    pub color: bool,
    /// Columns of the terminal; longer source lines are cut at the sides.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            color: false,
            width: 100,
        }
    }
}

/// Most diagnostics that [`render`] shows; the rest is counted. Nobody reads more, and
/// `--json` has them all.
const SHOWN: usize = 50;

/// Shows diagnostics as rustc would, an empty line between any two, ending in a line that counts
/// the errors if there are any.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], source: &Source, style: Style) -> String {
    let renderer = if style.color {
        Renderer::styled()
    } else {
        Renderer::plain()
    }
    .term_width(style.width);
    let mut out = String::new();
    for diagnostic in diagnostics.iter().take(SHOWN) {
        // The renderer indents empty lines too.
        for line in renderer.render(&[group(diagnostic, source)]).lines() {
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.push('\n');
    }
    let hidden = diagnostics.len().saturating_sub(SHOWN);
    if hidden > 0 {
        let _ = writeln!(out, "… and {hidden} more\n");
    }
    let errors = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .count();
    if errors > 0 {
        let _ = writeln!(
            out,
            "{} {errors} {} in `{}`",
            if hidden > 0 { "in all," } else { "found" },
            if errors == 1 { "error" } else { "errors" },
            visible(&source.name)
        );
    } else {
        while out.ends_with("\n\n") {
            out.pop();
        }
    }
    out
}

/// One diagnostic: title, the lines it is about, the key, the hint.
fn group<'a>(diagnostic: &'a Diagnostic, source: &'a Source) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let label = diagnostic
        .wanted
        .as_ref()
        .map(|wanted| visible(&format!("wanted: {wanted}")));
    let mut group = level
        .primary_title(visible(&diagnostic.message))
        .id(diagnostic.code.as_str())
        .element(snippet(
            source,
            &diagnostic.place,
            label,
            &diagnostic.related,
        ));
    for related in &diagnostic.related {
        if related.place.span.file != diagnostic.place.span.file {
            let message = Some(visible(&related.message));
            group = group.element(snippet(source, &related.place, message, &[]));
        }
    }
    if !diagnostic.key.is_empty() {
        group = group.element(
            Level::NOTE
                .with_name(Some("key"))
                .message(visible(&diagnostic.key)),
        );
    }
    if let Some(hint) = &diagnostic.hint {
        let lines: Vec<_> = hint.lines().map(visible).collect();
        let hint = Level::HELP.with_name(Some("hint"));
        group = group.element(hint.message(lines.join("\n")));
    }
    group
}

/// The lines of one file that `place`, and those of `related` in the same file, stand in. Only
/// these lines are handed to the renderer, for a list file may have a million.
fn snippet<'a>(
    source: &'a Source,
    place: &Place,
    label: Option<String>,
    related: &'a [Related],
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = source.text_of(place.span.file);
    let here = || {
        related
            .iter()
            .filter(|related| related.place.span.file == place.span.file)
    };
    let start = here()
        .map(|related| related.place.span.start)
        .fold(place.span.start, usize::min);
    let end = here()
        .map(|related| related.place.span.end)
        .fold(place.span.end, usize::max);
    let first_line = here()
        .map(|related| related.place.position.line)
        .fold(place.position.line, usize::min);
    let from = text
        .get(..start)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let to = text
        .get(end..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |newline| end + newline);
    let cut = text.get(from..to).unwrap_or_default();
    let within = |span: Span| {
        let clamp = |at: usize| at.saturating_sub(from).min(cut.len());
        clamp(span.start)..clamp(span.end)
    };
    Snippet::source(cut)
        .path(visible(&place.position.file))
        .line_start(first_line)
        .annotation(
            AnnotationKind::Primary
                .span(within(place.span))
                .label(label),
        )
        .annotations(here().map(|related| {
            AnnotationKind::Context
                .span(within(related.place.span))
                .label(visible(&related.message))
        }))
}

/// `text` between backticks, fit for one line of a terminal: control characters
/// escaped, the middle left out if it is long; in words if it is empty.
#[must_use]
pub fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    const KEPT: usize = 28;
    if text.is_empty() {
        return "an empty text".to_owned();
    }
    let shown = visible(text);
    let length = shown.chars().count();
    if length <= LONGEST {
        return format!("`{shown}`");
    }
    let head: String = shown.chars().take(KEPT).collect();
    let tail: String = shown.chars().skip(length - KEPT).collect();
    format!("`{head}…{tail}`")
}

/// `text` with everything escaped that a terminal would act on, or show out of order.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let reorders = matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        );
        if character.is_control() || reorders {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
