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
