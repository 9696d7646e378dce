//! The tree keeps its own rules: sizes, heads of files, and who may import whom (ARCHITECTURE.md).
//!
//! Each rule is a function of a file's path and text, and each is shown to fail on a sample. Words that the rules look
//! for are built from pieces, so that this file does not break them itself.

use std::{fs, io, path::Path};

/// Most lines in a file that people write; a longer one is asking to be two.
const LINE_LIMIT: usize = 800;

/// Longest file that is read, in bytes: anything longer was not written by a person.
const FILE_LIMIT: u64 = 4 << 20;

/// Folders and files that are made by programs.
const MADE: [&str; 5] = ["target", ".git", "Cargo.lock", "Cargo.toml.orig", "node_modules"];

/// Endings of the files that are read.
const READ: [&str; 10] = ["rs", "toml", "md", "proto", "yml", "yaml", "json", "service", "conf", "sh"];

/// A file's text, as its rules see it.
struct Text<'a> {
    /// From the workspace's root, with `/` between the parts.
    path: &'a str,
    all: &'a str,
    /// Without comments and inline tests.
    code: String,
}

impl<'a> Text<'a> {
    fn new(path: &'a str, all: &'a str) -> Self {
        let product = all.split("#[cfg(test)]\nmod tests {").next().unwrap_or(all);
        let code: Vec<&str> = product.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        Self { path, all, code: code.join("\n") }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn under(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Whether the code names `word` as a whole: not as a part of a longer name.
    fn names(&self, word: &str) -> bool {
        let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        self.code.match_indices(word).any(|(at, _)| {
            let before = self.code[..at].chars().next_back();
            let behind = self.code[at + word.len()..].chars().next();
            !part(before) && (word.ends_with(':') || !part(behind))
        })
    }
}

/// A rule's name, and whether a file breaks it.
type Rule = (&'static str, fn(&Text<'_>) -> bool);

const RULES: [Rule; 11] = [
    ("a file has at most 800 lines", |text| !text.path.ends_with(".json") && text.all.lines().count() > LINE_LIMIT),
    ("nothing is left to do later", |text| {
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimpl", "emented!(")]
            .iter()
            .any(|word| text.all.contains(word))
    }),
    ("imports are named, not globbed", |text| {
        text.is_rust()
            && text.code.lines().map(str::trim).any(|line| {
                let import =
                    line.starts_with("use ") || line.starts_with("pub use ") || line.starts_with("pub(crate) use ");
                import && line.contains("::*") && !(text.is_test() && line == "use super::*;")
            })
    }),
    ("foo.rs stands beside foo/", |text| text.path.ends_with("/mod.rs")),
    ("a file begins by saying what it is for", |text| text.is_rust() && !text.all.starts_with("//! ")),
    ("proto imports none of ours", |text| {
        let ours = text.names("potluck_node") || text.names("potluck::") || text.names("potluck_tests");
        text.is_rust() && text.under(&["proto/"]) && ours
    }),
    ("proto is pure but for its transport", |text| {
        let impure =
            ["tokio::", "std::fs", "SystemTime::now", "Instant::now", "UdpSocket", "TcpStream", "thread::spawn"];
        let pure = text.under(&["proto/src/"]) && !text.under(&["proto/src/transport"]) && !text.is_test();
        text.is_rust() && pure && impure.iter().any(|word| text.names(word))
    }),
    ("the node never imports the client", |text| {
        let rust = text.is_rust() && text.names("potluck::");
        let manifest = text.path == "node/Cargo.toml" && text.all.lines().any(|line| line.starts_with("potluck."));
        text.under(&["node/"]) && (rust || manifest)
    }),
    ("only the client's command line imports the node", |text| {
        let cli = text.under(&["client/src/cli", "client/src/demo", "client/tests/"]);
        text.is_rust() && text.under(&["client/"]) && !cli && text.names("potluck_node")
    }),
    ("only the transport knows quinn", |text| {
        let allowed = text.under(&["proto/src/transport", "tests/"]);
        let rust = text.is_rust() && (text.names("quinn") || text.names("quinn_proto"));
        let manifest = ["node/Cargo.toml", "client/Cargo.toml"].contains(&text.path)
            && text.all.lines().any(|line| line.starts_with("quinn"));
        !allowed && (rust || manifest)
    }),
    ("no path of one machine", |text| {
        let machines = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
        machines.iter().any(|path| text.all.contains(path))
    }),
];

/// Every file that people write, with its text.
fn files(folder: &Path, prefix: &str, found: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (kind, path) = (entry.file_type()?, format!("{prefix}{name}"));
        if MADE.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            files(&entry.path(), &format!("{path}/"), found)?;
        } else if kind.is_file() && entry.metadata()?.len() <= FILE_LIMIT {
            let script = ["tests/run", "tests/bench", "tests/soak", ".ci/run", "Dockerfile"]
                .iter()
                .any(|end| path.ends_with(end));
            if script || name.rsplit_once('.').is_some_and(|(_, end)| READ.contains(&end)) {
                found.push((path, fs::read_to_string(entry.path())?));
            }
        }
    }
    Ok(())
}

fn broken(path: &str, text: &str) -> Vec<String> {
    let text = Text::new(path, text);
    let rules = RULES.iter().filter(|(_, breaks)| breaks(&text));
    rules.map(|(rule, _)| format!("{path}: {rule}")).collect()
}

#[test]
fn the_tree_is_tidy() {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), "", &mut found).unwrap();
    for expected in ["proto/src/lib.rs", "node/src/lib.rs", "client/src/lib.rs", "tests/run", "deploy/CONFIG.md"] {
        assert!(found.iter().any(|(path, _)| path == expected), "{expected} was not looked at");
    }
    let broken: Vec<String> = found.iter().flat_map(|(path, text)| broken(path, text)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn each_rule_can_fail() {
    let long = format!("//! Long.\n{}", "\n".repeat(LINE_LIMIT));
    let later = format!("//! Later.\n// {}: more\n", concat!("TO", "DO"));
    let place = format!("data = \"{}x\"\n", concat!("/ro", "ot/"));
    let samples: [(&str, &str); 11] = [
        ("node/src/long.rs", &long),
        ("node/src/later.rs", &later),
        ("node/src/glob.rs", "//! Glob.\nuse std::io::*;\n"),
        ("node/src/store/mod.rs", "//! Store.\n"),
        ("node/src/bare.rs", "use std::io;\n"),
        ("proto/src/ring.rs", "//! Ring.\nuse potluck_node::config;\n"),
        ("proto/src/ring.rs", "//! Ring.\nfn now() { std::time::Instant::now(); }\n"),
        ("node/src/store.rs", "//! Store.\nuse potluck::vault;\n"),
        ("client/src/vault.rs", "//! Vault.\nuse potluck_node::config;\n"),
        ("node/src/store.rs", "//! Store.\nuse quinn::Endpoint;\n"),
        ("deploy/sample.toml", &place),
    ];
    for ((rule, _), (path, text)) in RULES.iter().zip(samples) {
        assert_eq!(broken(path, text), [format!("{path}: {rule}")]);
    }
    assert_eq!(broken("node/Cargo.toml", "potluck.workspace = true\n").len(), 1);
    assert_eq!(broken("client/Cargo.toml", "quinn.workspace = true\n").len(), 1);
}

#[test]
fn what_is_allowed_passes() {
    for (path, text) in [
        ("client/src/cli/node.rs", "//! Node.\nuse potluck_node::config;\n"),
        ("proto/src/transport/pool.rs", "//! Pool.\nuse quinn::Connection;\nuse tokio::time;\n"),
        ("node/src/store.rs", "//! Store. It never sees potluck::vault, nor quinn.\nuse potluck_proto::id;\n"),
        ("node/src/store.rs", "//! Store.\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n"),
        ("node/src/store/tests.rs", "//! Tests.\nuse super::*;\n"),
        ("proto/src/ring.rs", "//! Ring.\nstruct UdpSocketAddress;\n"),
    ] {
        assert_eq!(broken(path, text), [] as [&str; 0]);
    }
}
