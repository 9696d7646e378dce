//! Nodes alone, as real processes: tokens that do not admit, signals, restarts, noise on the port, wrong settings.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use potluck_node::config::Settings;
use potluck_proto::invite::InviteToken;
use potluck_tests::process::{Processes, quick};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Longest wait for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// By when a node that was stopped in order is down for all, counted from the end of its process: well below what it takes
/// to notice a death by silence. Mostly the time of the commands that ask.
const GOODBYE_TIME: Duration = Duration::from_secs(3);

/// What an operator's command ends with when it fails.
const FAILED: i32 = 1;

/// What a command ends with when its arguments are wrong, as clap has it.
const USAGE: i32 = 2;

#[test]
fn only_a_good_token_admits() {
    let cluster = Processes::found(quick()).unwrap();
    let join = |token: &str, folder: &str| {
        cluster.node(["join", token], Some(&cluster.path(folder)), &Settings::default()).unwrap()
    };

    join("hello", "a").fails(FAILED, &["potnode1"]).unwrap();
    let token = cluster.invite(&[]).unwrap();
    let end = token.len() - 1;
    let typed = format!("{}{}", &token[..end], if token.ends_with('q') { 'p' } else { 'q' });
    join(&typed, "a").fails(FAILED, &["damaged", "copy it again"]).unwrap();
    let vault = cluster.invite(&["--vault"]).unwrap();
    join(&vault, "a").fails(FAILED, &["potluck vault create"]).unwrap();

    let mut never_made: InviteToken = token.parse().unwrap();
    never_made.secret[0] ^= 1;
    join(&never_made.to_string(), "a").fails(FAILED, &["no such invite"]).unwrap();

    let brief = cluster.invite(&["--valid-for", "1s"]).unwrap();
    let expires = Duration::from_secs(brief.parse::<InviteToken>().unwrap().expires_s);
    cluster.until("the token has run out", PATIENCE, |_| Ok(UNIX_EPOCH + expires < SystemTime::now())).unwrap();
    join(&brief, "a").fails(FAILED, &["run out", "ask for a new one"]).unwrap();
    // A clock that is wrong, or a newcomer that does not care, is told the same by the inviter.
    let mut later: InviteToken = brief.parse().unwrap();
    later.expires_s += 1_000_000;
    join(&later.to_string(), "a").fails(FAILED, &["run out"]).unwrap();

    // None of these used the token up, and cut off or done twice it gives the same certificate.
    join(&token, "a").ok().unwrap();
    join(&token, "a").fails(FAILED, &["holds a node", "already"]).unwrap();
    join(&token, "b").fails(FAILED, &["already used"]).unwrap();

    let other = Processes::found(quick()).unwrap();
    let mut foreign: InviteToken = cluster.invite(&[]).unwrap().parse().unwrap();
    let there: InviteToken = other.invite(&[]).unwrap().parse().unwrap();
    foreign.addresses.clone_from(&there.addresses);
    // At that address answers someone whom the token does not name.
    join(&foreign.to_string(), "c").fails(FAILED, &["cannot be reached"]).unwrap();
    foreign.inviter = there.inviter;
    join(&foreign.to_string(), "c").fails(FAILED, &["cluster"]).unwrap();
    assert_eq!(cluster.status(0).unwrap()["members"], 1, "who was admitted and never ran has no place on the ring");
}

#[test]
fn nodes_come_and_go_and_bear_noise() {
    let mut cluster = Processes::found(quick()).unwrap();
    cluster.grow(3, 3).unwrap();
    let id = |cluster: &Processes, number| cluster.status(number).unwrap()["node"].clone();
    let before = id(&cluster, 2);

    // One folder, one process; the first is not disturbed.
    let second = cluster.node(["run"], Some(cluster.data(1)), &quick()).unwrap();
    second.fails(FAILED, &["in use by another process"]).unwrap();
    assert_eq!(cluster.status(1).unwrap()["members_up"], 3);

    // Whether it ends in order or is killed: the others notice, and it comes back as who it was.
    cluster.stop(2).unwrap();
    let noticed = cluster.until_known().unwrap();
    assert!(noticed < GOODBYE_TIME, "after an orderly stop it was taken for up for {noticed:?}");
    cluster.start(2).unwrap();
    cluster.until_known().unwrap();
    cluster.kill(2).unwrap();
    cluster.until_known().unwrap();
    cluster.start(2).unwrap();
    cluster.until_known().unwrap();
    assert_eq!(id(&cluster, 2), before);

    // Noise, for as long as it takes a fourth node to join and be known by all.
    let mut rng = StdRng::seed_from_u64(1);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addresses: Vec<_> = (0..3).map(|number| cluster.address(number).unwrap()).collect();
    let mut shout = move || {
        let mut packet = [0; 1400];
        for address in &addresses {
            for _ in 0..200 {
                let length = rng.random_range(1..packet.len());
                rng.fill_bytes(&mut packet[..length]);
                // Some pass for the first packet of a QUIC connection of a version that is, or is not, known.
                if rng.random() {
                    packet[0] |= 0xc0;
                    packet[1..5].copy_from_slice(&[0, 0, 0, rng.random_range(0..3)]);
                }
                // A full queue drops a packet: that is as good.
                let _ = socket.send_to(&packet[..length], address);
            }
        }
    };
    shout();
    cluster.grow(4, 4).unwrap();
    cluster
        .until("all know four amid noise", PATIENCE, |cluster| {
            shout();
            Ok(cluster.statuses()?.iter().all(|(_, status)| status["members_up"] == 4))
        })
        .unwrap();

    // A paused process is down for the others, and up again without a restart.
    cluster.pause(3).unwrap();
    let sees = |cluster: &Processes, up: u64| Ok(cluster.status(0)?["members_up"] == up);
    cluster.until("the paused node is down", PATIENCE, |cluster| sees(cluster, 3)).unwrap();
    cluster.resume(3).unwrap();
    cluster.until("it is up again", PATIENCE, |cluster| sees(cluster, 4)).unwrap();
    for number in cluster.up() {
        cluster.stop(number).unwrap();
    }
}

#[test]
fn wrong_settings_are_named() {
    let cluster = Processes::found(quick()).unwrap();
    let folder = cluster.path("new");
    let run =
        |words: &[&str], data: Option<&Path>| cluster.node(words.iter().copied(), data, &Settings::default()).unwrap();
    run(&["init"], None).fails(FAILED, &["--data"]).unwrap();
    run(&["run"], Some(&folder)).fails(FAILED, &["holds no node yet", "init"]).unwrap();
    run(&["init"], Some(cluster.data(0))).fails(FAILED, &["already"]).unwrap();
    run(&["init", "--capacity", "a lot"], Some(&folder)).fails(USAGE, &["--capacity", "a lot"]).unwrap();
    run(&["init", "--capacity", "0"], Some(&folder)).fails(FAILED, &["setting capacity"]).unwrap();
    run(&["init", "--listen", "nowhere"], Some(&folder)).fails(USAGE, &["--listen"]).unwrap();
    run(&["init", "--no-such"], Some(&folder)).fails(USAGE, &["--no-such"]).unwrap();
    run(&["status"], Some(&folder)).fails(FAILED, &["holds no node"]).unwrap();

    let file = cluster.path("settings.toml");
    let with_file = |text: &str, words: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let config = ["--config", file.to_str().unwrap()];
        run(&[&["init"], &config[..], words].concat(), Some(&folder))
    };
    with_file("capacity = 1GB", &[]).fails(FAILED, &["settings.toml", "line 1"]).unwrap();
    with_file("capacty = \"1GB\"", &[]).fails(FAILED, &["capacty"]).unwrap();
    with_file("trash_time = \"1ms\"", &[]).fails(FAILED, &["setting trash_time", "at least"]).unwrap();
    with_file("repair_lazy_after = \"2d\"", &[]).fails(FAILED, &["repair_lazy_after", "lost_after"]).unwrap();
    std::fs::remove_file(&file).unwrap();
    run(&["init", "--config", file.to_str().unwrap()], Some(&folder)).fails(FAILED, &["settings.toml"]).unwrap();
    assert!(!folder.exists(), "nothing is made before the settings are right");

    // A taken address ends a start with the address in the message, and harms nobody.
    let taken = cluster.address(0).unwrap();
    run(&["init", "--listen", &taken.to_string(), "--http", "off"], Some(&folder)).ok().unwrap();
    run(&["run"], Some(&folder)).fails(FAILED, &[&taken.to_string()]).unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--http", &taken.to_string()];
    let socket = std::net::TcpListener::bind(taken).unwrap();
    run(&[&["run"], &listen[..]].concat(), Some(&folder)).fails(FAILED, &[&taken.to_string()]).unwrap();
    drop(socket);
    assert_eq!(cluster.status(0).unwrap()["members_up"], 1);
    assert!(cluster.node(["stop"], None, &Settings::default()).unwrap().code == Some(USAGE));
}
