//! Commands that edit the policy: what mends a trouble may be a line in it.

use std::net::IpAddr;

/// The policy file, as far as commands need to know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyFile {
    /// Its path, as typed; `-` for standard input.
    pub path: String,
    /// What is in it.
    pub text: String,
}

impl PolicyFile {
    /// Commands that set `key` under `[options]` to `value`, and apply the policy if it is in
    /// force.
    #[must_use]
    pub fn set_option(&self, key: &str, value: &str, in_force: bool) -> Vec<String> {
        let path = self.quoted();
        let mut section = String::new();
        let mut has_options = false;
        let mut has_key = false;
        for line in self.text.lines().map(str::trim) {
            if line.starts_with('[') {
                line.clone_into(&mut section);
                has_options |= is_options(line);
            } else if is_options(&section) {
                has_key |= line
                    .split_once('=')
                    .is_some_and(|(found, _)| found.trim() == key);
            }
        }
        let edit = if has_key {
            format!(r"sed -i 's|^\([[:blank:]]*{key}[[:blank:]]*=\).*|\1 {value}|' {path}")
        } else if has_options {
            format!(r"sed -i '/^[[:blank:]]*\[options\]/a {key} = {value}' {path}")
        } else {
            format!(r"printf '\n[options]\n{key} = {value}\n' >> {path}")
        };
        self.then_apply(edit, in_force)
    }

    /// Commands that put one quoted word in another's place, wherever it stands.
    #[must_use]
    pub fn replace_word(&self, from: &str, to: &str, in_force: bool) -> Vec<String> {
        let edit = format!(r#"sed -i 's|"{from}"|"{to}"|g' {}"#, self.quoted());
        self.then_apply(edit, in_force)
    }

    /// Commands that except a server from a redirect.
    #[must_use]
    pub fn except_server(&self, redirect: &str, server: IpAddr, in_force: bool) -> Vec<String> {
        let path = self.quoted();
        let name = format!("name = \"{redirect}\"");
        let mut section = Vec::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with('[') {
                if section.contains(&name) {
                    break;
                }
                section.clear();
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            section.push(words.join(" "));
        }
        let has_exceptions = section.iter().any(|line| line.starts_with("except_server"));
        if !section.contains(&name) || has_exceptions {
            return vec![format!(
                "# add \"{server}\" to `except_server` of redirect `{redirect}` in {path}"
            )];
        }
        let edit = format!(
            r#"sed -i '/^[[:blank:]]*name[[:blank:]]*=[[:blank:]]*"{redirect}"/a except_server = "{server}"' {path}"#
        );
        self.then_apply(edit, in_force)
    }

    /// Commands that add values to lists of a redirect.
    #[must_use]
    pub fn extend(&self, redirect: &str, more: &[(&str, String)], in_force: bool) -> Vec<String> {
        let mut lines: Vec<(&str, String)> = Vec::new();
        for (key, value) in more {
            let Some(found) = self.line_of(redirect, key) else {
                return self.by_hand(redirect, more);
            };
            let at = lines.iter().position(|(line, _)| *line == found);
            let now = at
                .and_then(|at| lines.get(at))
                .map_or(found, |(_, now)| now);
            let Some(longer) = with_value(now, value) else {
                return self.by_hand(redirect, more);
            };
            match at.and_then(|at| lines.get_mut(at)) {
                Some((_, now)) => *now = longer,
                None => lines.push((found, longer)),
            }
        }
        let edits = lines.iter().map(|(from, to)| {
            let script = format!(
                "s|^{}$|{}|",
                escaped(from, r"\[]*.^$|"),
                escaped(to, r"\&|")
            );
            format!("sed -i {} {}", crate::shell::word(&script), self.quoted())
        });
        let mut commands: Vec<String> = edits.collect();
        if in_force {
            commands.push(format!("redirect apply {}", self.quoted()));
        }
        commands
    }

    /// What is left to people.
    fn by_hand(&self, redirect: &str, more: &[(&str, String)]) -> Vec<String> {
        let add = |(key, value): &(&str, String)| {
            let path = self.quoted();
            format!("# add {value} to `{key}` of redirect `{redirect}` in {path}")
        };
        more.iter().map(add).collect()
    }

    /// The line in which a redirect has `key`, if there is no other like it.
    fn line_of(&self, redirect: &str, key: &str) -> Option<&str> {
        let mut section: Vec<&str> = Vec::new();
        for line in self.text.lines().chain(["["]) {
            let is_heading = line.starts_with("[[") || line == "[" || is_table(line);
            if is_heading {
                let name = section.iter().find_map(|line| value_of(line, "name"));
                if name.is_some_and(|name| name.trim_matches(['"', '\'']) == redirect) {
                    break;
                }
                section.clear();
            } else {
                section.push(line);
            }
        }
        let found = *section.iter().find(|line| value_of(line, key).is_some())?;
        let is_only = self.text.lines().filter(|line| *line == found).count() == 1;
        is_only.then_some(found)
    }

    fn then_apply(&self, edit: String, in_force: bool) -> Vec<String> {
        let mut commands = vec![edit];
        if in_force {
            commands.push(format!("redirect apply {}", self.quoted()));
        }
        commands
    }

    fn quoted(&self) -> String {
        if self.path == "-" || self.path.is_empty() {
            return "POLICY".to_owned();
        }
        crate::shell::word(&self.path)
    }
}

/// What a line says that `key` is.
fn value_of<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let (found, value) = line.split_once('=')?;
    (found.trim() == key).then_some(value.trim())
}

/// `[appliance.scb]`, which begins another section.
fn is_table(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('[') && line.ends_with(']')
}

/// A line with one more value in its list, where all of the list stands in this line.
fn with_value(line: &str, more: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    if value.contains(['#', '{']) || value.is_empty() {
        return None;
    }
    let values = match value.strip_prefix('[') {
        Some(list) => list.strip_suffix(']')?.trim().trim_end_matches(','),
        None => value,
    };
    Some(format!("{key}= [{values}, {more}]"))
}

/// With a backslash before each of `special`.
fn escaped(text: &str, special: &str) -> String {
    let escape = |letter: char| {
        special
            .contains(letter)
            .then_some('\\')
            .into_iter()
            .chain([letter])
    };
    text.chars().flat_map(escape).collect()
}

fn is_options(section: &str) -> bool {
    section
        .split(']')
        .next()
        .is_some_and(|name| name.trim_start_matches('[').trim() == "options")
        && section.starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(text: &str, key: &str, value: &str) -> String {
        edited(text, |file| file.set_option(key, value, false))
    }

    fn edited(text: &str, commands: impl Fn(&PolicyFile) -> Vec<String>) -> String {
        let scratch = crate::test_support::Scratch::new(&format!("edit-{}", text.len()));
        let path = scratch.path().join("policy.toml");
        let file = PolicyFile {
            path: path.display().to_string(),
            text: text.to_owned(),
        };
        let content = crate::observation::FileContent {
            text: text.to_owned(),
            mode: 0o600,
        };
        crate::kernel::files::replace(&path, &content).unwrap();
        for command in commands(&file) {
            let soon = std::time::Duration::from_secs(10);
            let output = crate::kernel::process::run("sh", &["-c", &command], b"", soon).unwrap();
            assert!(output.status.success(), "{}", output.complaint());
        }
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn an_option_is_set_wherever_it_stands() {
        assert_eq!(
            edit("version = 1\n", "rule_priority", "49"),
            "version = 1\n\n[options]\nrule_priority = 49\n"
        );
        assert_eq!(
            edit("[options]\nbackend = \"auto\"\n", "rule_priority", "49"),
            "[options]\nrule_priority = 49\nbackend = \"auto\"\n"
        );
        assert_eq!(
            edit(
                "[options]\n  rule_priority=7 # why\n",
                "rule_priority",
                "49"
            ),
            "[options]\n  rule_priority= 49\n"
        );
    }

    #[test]
    fn lists_of_a_redirect_get_longer() {
        let extend = |text: &str| {
            edited(text, |file| {
                let more = [
                    ("server_network", "\"10.0.0.9\"".to_owned()),
                    ("server_network", "\"10.1.0.0/16\"".to_owned()),
                    ("port", "13389".to_owned()),
                ];
                file.extend("ssh", &more, false)
            })
        };
        let one = "[[redirect]]\nserver_network = '10.0.0.1'\nname=\"ssh\"\nport = [ 22, \"80-90\", ]\n[options]\nport = 1\n";
        assert_eq!(
            extend(one),
            "[[redirect]]\nserver_network = ['10.0.0.1', \"10.0.0.9\", \"10.1.0.0/16\"]\nname=\"ssh\"\nport = [22, \"80-90\", 13389]\n[options]\nport = 1\n"
        );
        for left_to_people in [
            one.replace("[ 22", "[\n 22"),
            one.replace("ssh", "rdp"),
            one.replace("'10.0.0.1'", "{ file = \"a\" }"),
            one.replace("port = 1\n", "port = [ 22, \"80-90\", ]\n"),
        ] {
            assert_eq!(extend(&left_to_people), left_to_people);
        }
    }

    #[test]
    fn a_server_is_excepted_from_its_redirect() {
        let except = |text: &str| {
            edited(text, |file| {
                file.except_server("ssh", "10.20.0.1".parse().unwrap(), false)
            })
        };
        let two = "[[redirect]]\nname = \"rdp\"\nexcept_server = \"10.0.0.1\"\n[[redirect]]\nname   = \"ssh\"\nport = 22\n";
        assert_eq!(
            except(two),
            two.replace("ssh\"\n", "ssh\"\nexcept_server = \"10.20.0.1\"\n")
        );
        let has = "[[redirect]]\nname = \"ssh\"\nexcept_server = [\n]\n";
        assert_eq!(except(has), has, "that is left to people");
    }
}
