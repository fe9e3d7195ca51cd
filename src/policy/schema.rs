//! The JSON Schema and the reference, both made from [`super::keys`].

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::diagnostic::{Code, Severity};
use super::keys::{
    APPLIANCE_TABLE, Key, Kind, Needed, OPTIONS_TABLE, REDIRECT_TABLE, SECTIONS, Section,
};

/// The JSON Schema (draft 2020-12) of a policy, by which editors complete and check it.
///
/// It is looser than [`super::read`] where a pattern cannot say what is meant (addresses), and
/// where two keys have to fit together; it never refuses what is accepted there.
#[must_use]
pub fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "policy of `redirect`",
        "description": "Which sessions a router sends to a session-recording appliance.",
        "type": "object",
        "properties": {
            "version": property(&super::keys::VERSION),
            "appliance": {
                "description": "The recorders, by name.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "$ref": "#/$defs/name" },
                "additionalProperties": object(&APPLIANCE_TABLE),
            },
            "redirect": one_or_many(
                &object(&REDIRECT_TABLE),
                REDIRECT_TABLE.about,
            ),
            "options": object(&OPTIONS_TABLE),
        },
        "required": ["version", "appliance", "redirect"],
        "additionalProperties": false,
        "$defs": definitions(),
    })
}

fn object(section: &Section) -> Value {
    let properties: Map<String, Value> = section
        .keys
        .iter()
        .map(|key| (key.name.to_owned(), property(key)))
        .collect();
    let required: Vec<_> = section
        .keys
        .iter()
        .filter(|key| key.needed == Needed::Always)
        .map(|key| key.name)
        .collect();
    let mut object = json!({
        "description": section.about,
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty()
        && let Some(object) = object.as_object_mut()
    {
        object.insert("required".to_owned(), json!(required));
    }
    object
}

fn property(key: &Key) -> Value {
    let mut text = key.summary.to_owned();
    if !key.details.is_empty() {
        let _ = write!(text, "\n\n{}", key.details);
    }
    if let Needed::Otherwise(otherwise) | Needed::Unless(otherwise) = key.needed {
        let _ = write!(text, "\n\nMay be left out: {otherwise}.");
    }
    let value = value(key.kind);
    let mut property = if key.list {
        one_or_many(&value, &text)
    } else {
        let mut value = value;
        if let Some(object) = value.as_object_mut() {
            object.insert("description".to_owned(), json!(text));
        }
        value
    };
    if let Some(object) = property.as_object_mut() {
        if let Needed::Default(default) = key.needed {
            object.insert("default".to_owned(), toml_value(default));
        }
        object.insert("examples".to_owned(), json!([toml_value(key.example)]));
    }
    property
}

fn one_or_many(one: &Value, description: &str) -> Value {
    json!({
        "description": description,
        "oneOf": [one, { "type": "array", "minItems": 1, "items": one }],
    })
}

/// One value of this kind.
fn value(kind: Kind) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    match kind {
        Kind::Version => json!({ "type": "integer", "const": 1 }),
        Kind::Name => reference("name"),
        Kind::Address => reference("address"),
        Kind::Interface => reference("interface"),
        Kind::InterfacePattern => reference("interface_pattern"),
        Kind::Mac => reference("mac"),
        Kind::Network => reference("network"),
        Kind::Port => reference("port"),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Table | Kind::Mark => {
            json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
        }
        Kind::Priority => {
            json!({ "type": "integer", "minimum": 1, "maximum": super::check::LAST_PRIORITY })
        }
        Kind::Choice(words) => {
            let (words, meanings): (Vec<_>, Vec<_>) = words.iter().copied().unzip();
            // The extension is taplo's, by which editors explain each word.
            json!({
                "type": "string",
                "enum": words,
                "x-taplo": { "docs": { "enumValues": meanings } },
            })
        }
    }
}

fn definitions() -> Value {
    // What `check_characters` in `crate::net` refuses.
    const INTERFACE: &str = r#"[^\s/:"'\\`$*\x00-\x1f\x7f]"#;
    json!({
        "name": {
            "type": "string",
            "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$",
        },
        "address": {
            "description": "An address without prefix length.",
            "type": "string",
            "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$",
        },
        "interface": {
            "type": "string",
            "pattern": format!("^{INTERFACE}{{1,15}}$"),
        },
        "interface_pattern": {
            "description": "An interface name, or a prefix of names and `*`.",
            "type": "string",
            "pattern": format!("^{INTERFACE}{{1,15}}\\*?$"),
        },
        "mac": {
            "type": "string",
            "pattern": "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$",
        },
        "network": {
            "description": "An address with or without prefix length, or a file of them.",
            "oneOf": [
                {
                    "type": "string",
                    "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,3})?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]{1,3})?)$",
                },
                {
                    "type": "object",
                    "properties": {
                        "file": {
                            "description": "One network a line, `#` for comments; found from the policy's own folder.",
                            "type": "string",
                            "minLength": 1,
                        },
                    },
                    "required": ["file"],
                    "additionalProperties": false,
                },
            ],
        },
        "port": {
            "description": "A TCP port, or a range such as `\"5900-5910\"`.",
            "oneOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": r"^\s*[0-9]+\s*(-\s*[0-9]+\s*)?$" },
            ],
        },
    })
}

/// A value as it stands in a policy, as JSON. Those in [`super::keys`] are sound; a test reads them all.
fn toml_value(text: &str) -> Value {
    toml::from_str::<Value>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.get_mut("value").map(Value::take))
        .unwrap_or_default()
}

/// The reference of the policy, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(
        "# The policy\n\n\
        TOML, by default in `/etc/redirect/policy.toml`. Unknown keys are errors. Where a key takes a list, one \
        value will do. Neither the policy nor a list file that it names may be writable by others than its \
        owner and root.\n",
    );
    for section in SECTIONS {
        let title = if section.header.is_empty() {
            "At the top".to_owned()
        } else {
            format!("`{}`", section.header)
        };
        let _ = write!(out, "\n## {title}\n\n{}\n", section.about);
        for key in section.keys {
            describe(key, &mut out);
        }
    }
    let _ = write!(
        out,
        "\n## Messages\n\nEvery message has a code that stays the same from version to version.\n\n\
        | code | | |\n|---|---|---|\n"
    );
    for code in Code::ALL {
        let severity = match code.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(out, "| {code} | {severity} | {} |", code.summary());
    }
    out
}

fn describe(key: &Key, out: &mut String) {
    let _ = write!(out, "\n### `{}`\n\n{}", key.name, key.summary);
    if !key.details.is_empty() {
        let _ = write!(out, " {}", key.details);
    }
    let _ = write!(out, "\n\n- Value: {}", key.kind.wanted());
    if key.list {
        let _ = write!(out, "; or a list");
    }
    let _ = writeln!(out);
    if let Kind::Choice(words) = key.kind {
        for (word, meaning) in words {
            let _ = writeln!(out, "  - `\"{word}\"`: {meaning}");
        }
    }
    match key.needed {
        Needed::Always => {}
        Needed::Unless(unless) => {
            let _ = writeln!(out, "- May be left out if {unless}.");
        }
        Needed::Default(default) => {
            let _ = writeln!(out, "- Default: `{default}`");
        }
        Needed::Otherwise(otherwise) => {
            let _ = writeln!(out, "- If left out: {otherwise}.");
        }
    }
    if key.needed == Needed::Always {
        let _ = writeln!(out, "- Must be given.");
    }
    let _ = writeln!(out, "- Example: `{} = {}`", key.name, key.example);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_and_default_is_sound_toml() {
        for key in SECTIONS.iter().flat_map(|section| section.keys) {
            assert_ne!(toml_value(key.example), Value::Null, "{}", key.name);
            if let Needed::Default(default) = key.needed {
                assert_ne!(toml_value(default), Value::Null, "{}", key.name);
            }
        }
    }

    #[test]
    fn the_reference_names_every_key() {
        let reference = reference();
        for key in SECTIONS.iter().flat_map(|section| section.keys) {
            assert!(
                reference.contains(&format!("### `{}`", key.name)),
                "{}",
                key.name
            );
        }
    }
}
