//! The layers' weights, the errors' words, and the reference page that operators read.

use std::fmt::Write;

use clap::{Args, Command, FromArgMatches};

use super::*;

/// The same settings as the real command has, under other names of environment variables, so that the test does not
/// depend on the environment it runs in.
fn args(words: &[&str]) -> ConfigArgs {
    let command = ConfigArgs::augment_args(Command::new("node")).mut_args(|arg| arg.env(None));
    let words = ["node"].iter().chain(words);
    ConfigArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
}

#[test]
fn flags_weigh_more_than_the_file_and_the_file_more_than_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let bare = args(&["--data", data]).load().unwrap();
    assert_eq!(bare, Settings::default().finish(data.into()).unwrap());
    assert_eq!((bare.listen.port(), bare.capacity), (4701, None));
    assert_eq!(bare.capacity_on(1000, 500), 1350);

    let text = "listen = \"[::]:5000\"\nhttp = \"off\"\ncapacity = \"2TB\"\ntrash_time = \"1d12h\"\n\
        advertise = [\"192.0.2.1:5000\"]\nlog_format = \"json\"\n";
    std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
    let filed = args(&["--data", data]).load().unwrap();
    assert_eq!((filed.listen.to_string().as_str(), filed.http), ("[::]:5000", None));
    assert_eq!((filed.capacity, filed.log_format), (Some(2_000_000_000_000), LogFormat::Json));
    assert_eq!(filed.trash_time, Duration::from_secs(36 * 3600));

    let flags = ["--data", data, "--http", "127.0.0.1:0", "--capacity", "1GiB", "--advertise", "192.0.2.2:1,[::1]:2"];
    let flagged = args(&flags).load().unwrap();
    assert_eq!(flagged.http, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
    assert_eq!((flagged.capacity, flagged.advertise.len()), (Some(1 << 30), 2));
    assert_eq!(flagged.listen, filed.listen);

    let other = folder.path().join("other.toml");
    std::fs::write(&other, "zone = \"attic\"").unwrap();
    let named = args(&["--data", data, "--config", other.to_str().unwrap()]).load().unwrap();
    assert_eq!((named.zone.as_deref(), named.listen.port()), (Some("attic"), 4701));
}

#[test]
fn the_environment_weighs_less_than_flags() {
    // PATH is the one variable that is set everywhere; clap itself is what is relied upon for the rest.
    let command = || ConfigArgs::augment_args(Command::new("node")).mut_args(|arg| arg.env(None));
    let command = || command().mut_arg("zone", |arg| arg.env("PATH"));
    let zone = |words: &[&str]| {
        let matches = command().try_get_matches_from(words).unwrap();
        ConfigArgs::from_arg_matches(&matches).unwrap().settings.zone
    };
    assert_eq!(zone(&["node"]), std::env::var("PATH").ok());
    assert_eq!(zone(&["node", "--zone", "cellar"]), Some("cellar".into()));
}

#[test]
fn errors_name_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let error = |text: &str| {
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        args(&["--data", data]).load().unwrap_err().to_string()
    };
    assert!(error("capcity = \"1GB\"").contains("capcity"));
    assert!(error("capacity = \"500G\"").contains("500GB"));
    assert!(error("trash_time = \"7\"").contains("unit of time"));
    assert!(error("http = \"localhost\"").contains("neither"));
    assert!(error("log_format = \"xml\"").contains("xml"));
    assert!(error("capacity = 0").contains("setting capacity"));
    assert!(error("zone = \"\"").contains("setting zone"));
    assert!(error("log = \"a=b=c\"").contains("setting log"));
    assert!(error("background_budget = \"1kB\"").contains("64KiB"));
    assert!(error("survey_interval = \"0s\"").contains("100ms"));
    assert!(error("lost_after = \"1m\"").contains("longer than lost_after, 1m"));
    assert!(error("advertise = [\"0.0.0.0:4701\"]").contains("nobody can reach"));
    assert!(error(&format!("# {}", "x".repeat(1 << 20))).contains("longer than 1 MiB"));
    assert!(matches!(args(&[]).load(), Err(ConfigError::NoData)));
    let absent = args(&["--data", data, "--config", "absent.toml"]).load().unwrap_err();
    assert!(absent.to_string().contains("absent.toml"));
}

/// What `deploy/CONFIG.md` says between its two marks.
fn reference() -> String {
    let defaults = toml::Table::try_from(Settings::defaults()).unwrap();
    let mut text = "| key | flag | environment | default | meaning |\n|---|---|---|---|---|\n".to_string();
    for arg in Settings::augment_args(Command::new("node")).get_arguments() {
        let (key, flag) = (arg.get_id().as_str(), arg.get_long().unwrap());
        let help = arg.get_help().unwrap().to_string();
        let (meaning, shown) = help.split_once(" Default: ").unwrap();
        let default = defaults.get(key).map_or(shown.to_string(), |value| {
            assert_eq!(value.as_str(), Some(shown), "the help of --{flag} names another default");
            format!("`{shown}`")
        });
        let env = arg.get_env().unwrap().to_str().unwrap();
        writeln!(text, "| `{key}` | `--{flag}` | `{env}` | {default} | {meaning} |").unwrap();
    }
    text
}

#[test]
fn the_reference_page_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/CONFIG.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- settings -->\n", "<!-- end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    if std::env::var_os("POTLUCK_BLESS").is_some() {
        std::fs::write(&path, format!("{head}{begin}{}{end}{tail}", reference())).unwrap();
    } else {
        assert_eq!(table, reference(), "run this test with POTLUCK_BLESS=1 to write the table anew");
    }
    let example = page.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    toml::from_str::<Settings>(example).unwrap().finish("data".into()).unwrap();
}
