//! Policies, good and bad, and all that the reader says about them.
//!
//! Each folder under `tests/policy` has a `policy.toml`, its list files, and `expected.txt`: the errors and
//! warnings as shown, and, if it is accepted, the policy. `UPDATE_GOLDEN=1 cargo test
//! --test policy` writes these anew, `examples/policy.schema.json` and `packaging/docs/policy.md`; read
//! the difference before committing it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redirect::net::{Networks, Range};
use redirect::policy::{self, Code, Policy, Source, Style};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Loads `policy` from a copy of its folder: the modes of a checkout depend on the umask, and
/// the reader refuses files that a group may write.
fn load(folder: &Path, policy: &str) -> Source {
    let name = folder.file_name().unwrap();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("policy-{}-{policy}", std::process::id()))
        .join(name);
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            let to = copy.join(from.file_name().unwrap());
            fs::copy(&from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    let mut source = Source::load(&copy.join(policy)).unwrap();
    policy.clone_into(&mut source.name);
    fs::remove_dir_all(&copy).unwrap();
    source
}

fn shown(source: &Source) -> String {
    match policy::read(source) {
        Ok(reading) => {
            let mut out = policy::render(&reading.warnings, source, Style::default());
            if !out.is_empty() {
                out.push('\n');
            }
            out + &accepted(&reading.policy)
        }
        Err(errors) => policy::render(&errors.diagnostics, source, Style::default()),
    }
}

/// A policy as people can compare it.
fn accepted(policy: &Policy) -> String {
    fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
        let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
        if items.is_empty() {
            "none".to_owned()
        } else {
            items.join(" ")
        }
    }
    let networks = |networks: &Networks| {
        join(
            (networks.v4.iter().flat_map(Range::<u32>::prefixes))
                .chain(networks.v6.iter().flat_map(Range::<u128>::prefixes)),
        )
    };
    let mut out = "accepted\n".to_owned();
    for appliance in &policy.appliances {
        let _ = write!(
            out,
            "\nappliance {}\n  addresses {}\n  interface {}\n  macs {}\n  table {}\n  mark {}\n  rule_priority {}\n",
            appliance.name,
            join(&appliance.addresses),
            appliance.interface,
            join(&appliance.macs),
            appliance.table,
            appliance.mark,
            appliance.rule_priority,
        );
    }
    for redirect in &policy.redirects {
        let _ = write!(
            out,
            "\nredirect {}\n  appliance {}\n  client_interfaces {}\n  server_interfaces {}\n  servers {}\n  except_clients {}\n  ports {}\n  snat {}\n",
            redirect.name,
            redirect.appliance,
            join(&redirect.client_interfaces),
            join(&redirect.server_interfaces),
            networks(&redirect.servers),
            networks(&redirect.except_clients),
            join(&redirect.ports),
            redirect.snat,
        );
    }
    let _ = writeln!(out, "\n{:#?}", policy.options);
    out
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(root().join("tests/policy"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

#[test]
fn every_story_ends_as_expected() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for folder in folders() {
        let got = shown(&load(&folder, "policy.toml"));
        let file = folder.join("expected.txt");
        if update {
            #[expect(clippy::disallowed_methods, reason = "a test writes its own fixture")]
            fs::write(&file, &got).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if got != expected {
            wrong.push(format!("=== {}\n{got}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_story() {
    let stories: String = folders()
        .iter()
        .map(|folder| fs::read_to_string(folder.join("expected.txt")).unwrap())
        .collect();
    // What only a router brings to light is shown by the tests that have one.
    for code in Code::ALL.iter().filter(|code| **code != Code::Router) {
        assert!(
            stories.contains(&format!("[{code}]")),
            "no folder under tests/policy shows {code}: {}",
            code.summary()
        );
    }
}

fn examples() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    names.sort();
    names
}

/// The schema, compiled by a validator that checks it against its own meta-schema first.
struct Schema(boon::Schemas, boon::SchemaIndex);

impl Schema {
    fn new() -> Self {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler
            .add_resource("policy.schema.json", policy::schema())
            .unwrap();
        let index = compiler
            .compile("policy.schema.json", &mut schemas)
            .unwrap_or_else(|error| panic!("{error:#}"));
        Self(schemas, index)
    }

    fn check(&self, text: &str) -> Result<(), String> {
        let text = text.trim_start_matches('\u{feff}');
        let value: serde_json::Value = toml::from_str(text).map_err(|error| error.to_string())?;
        self.0
            .validate(&value, self.1)
            .map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn every_example_is_accepted_without_a_word() {
    let examples = examples();
    assert!(examples.len() >= 8, "{examples:?}");
    for name in examples {
        let source = load(&root().join("examples"), &name);
        match policy::read(&source) {
            Ok(reading) if reading.warnings.is_empty() => {}
            _ => panic!("{name}\n{}", shown(&source)),
        }
    }
}

#[test]
fn the_schema_takes_every_example_and_every_accepted_story() {
    let schema = Schema::new();
    for name in examples() {
        let text = fs::read_to_string(root().join("examples").join(&name)).unwrap();
        schema
            .check(&text)
            .unwrap_or_else(|error| panic!("{name}\n{error}"));
    }
    let mut taken = 0;
    for folder in folders() {
        let text = fs::read_to_string(folder.join("policy.toml")).unwrap();
        if policy::read(&load(&folder, "policy.toml")).is_ok() {
            schema
                .check(&text)
                .unwrap_or_else(|error| panic!("{}\n{error}", folder.display()));
            taken += 1;
        }
    }
    assert!(taken >= 4);
}

#[test]
fn the_schema_refuses_what_an_editor_can_know() {
    let schema = Schema::new();
    for name in [
        "bad-values",
        "empty",
        "missing-keys",
        "nothing-to-do",
        "unknown-keys",
        "wrong-types",
    ] {
        let text =
            fs::read_to_string(root().join("tests/policy").join(name).join("policy.toml")).unwrap();
        assert!(schema.check(&text).is_err(), "{name}");
    }
    // One mistake at a time, in a policy that is otherwise sound.
    let sound =
        fs::read_to_string(root().join("tests/policy/accepted-everything/policy.toml")).unwrap();
    schema.check(&sound).unwrap();
    for (from, to) in [
        ("snat             = true", "snat = \"true\""),
        ("\"fd00:20::/64\"", "\"server.example.com\""),
        ("{ file = \"networks.txt\" }", "{ path = \"networks.txt\" }"),
        ("3389", "65536"),
        ("\"ppp*\"", "\"p p\""),
        ("\"sps0\"", "\"sps*\""),
        ("\"nftables\"", "\"nft\""),
        ("[appliance.alpha]", "[appliance.\"al pha\"]"),
        ("02:00:5e:00:00:02", "02:00:5e:00:00"),
        ("rule_priority     = 0x200", "rule_priority = 32766"),
        ("version = 1", "version = 2"),
    ] {
        let broken = sound.replacen(from, to, 1);
        assert_ne!(broken, sound, "{from}");
        assert!(schema.check(&broken).is_err(), "{to}");
    }
}

#[test]
fn the_schema_beside_the_examples_is_this_one() {
    let schema = serde_json::to_string_pretty(&policy::schema()).unwrap();
    is_written("examples/policy.schema.json", &format!("{schema}\n"));
}

#[test]
fn the_reference_among_the_documents_is_this_one() {
    is_written("packaging/docs/policy.md", &policy::reference());
}

fn is_written(file: &str, text: &str) {
    let file = root().join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a test writes its own fixture")]
        fs::write(&file, text).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

/// Writes `text` under the build's own folder for temporary files, with these permissions.
fn write(name: &str, text: &str, mode: u32) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("trust-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    #[expect(clippy::disallowed_methods, reason = "a test writes its own fixture")]
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn what_others_may_write_is_not_read() {
    let text = fs::read_to_string(root().join("examples/large.toml")).unwrap();
    for (mode, who) in [
        (0o620, "its group"),
        (0o602, "everyone"),
        (0o666, "everyone"),
    ] {
        let path = write(&format!("policy-{mode:o}.toml"), &text, mode);
        let error = Source::load(&path).unwrap_err();
        let expected = format!(
            "the policy `{}` is not to be trusted: {who} may write it (mode 0{mode:o})",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
        let hint = format!("look at what it says, then `chmod go-w {}`", path.display());
        assert_eq!(error.hint(), Some(hint));
    }
    // A list that others may write is as good as a policy that they may.
    let policy = write("policy.toml", &text, 0o644);
    let list = write("networks.txt", "10.20.0.0/24\n", 0o664);
    let errors = policy::read(&Source::load(&policy).unwrap()).unwrap_err();
    let [error] = errors.diagnostics.as_slice() else {
        panic!("{errors}");
    };
    assert_eq!(error.code, Code::ListUnreadable);
    assert_eq!(error.key, "redirect[1].server_network.file");
    assert!(
        error
            .message
            .ends_with("it is not to be trusted: its group may write it (mode 0664)")
    );
    fs::set_permissions(&list, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(policy::read(&Source::load(&policy).unwrap()).is_ok());
    fs::remove_dir_all(policy.parent().unwrap()).unwrap();
}

#[test]
fn what_is_no_policy_file_is_refused_with_a_reason() {
    let here = root();
    let error = |path: PathBuf| Source::load(&path).unwrap_err().to_string();
    assert!(error(here.join("no/such.toml")).ends_with("there is no such file"));
    assert!(error(here.join("src")).ends_with("it is a directory"));
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("unfit-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        #[expect(clippy::disallowed_methods, reason = "a test writes its own fixture")]
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let latin = put("latin", b"version = 1\n# d\xe9j\xe0 vu\n");
    assert!(error(latin).ends_with("it is not UTF-8 text at line 2, column 4"));
    let wide = Source::load(&put("wide", b"\xff\xfev\0e\0")).unwrap_err();
    assert_eq!(
        wide.hint().unwrap(),
        "it looks like UTF-16: save it as UTF-8"
    );
    let long = put("long", &vec![b'#'; 1024 * 1024 + 1]);
    assert!(error(long).ends_with("it is longer than 1 MiB"));
    fs::remove_dir_all(&folder).unwrap();
}
