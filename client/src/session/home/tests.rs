//! Folders of vaults: names, files that are damaged or half-written, and the writers' lock.

use super::*;

#[test]
fn names_and_which_vault_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path().join("home"));
    assert!(matches!(home.only_or_default(None), Err(HomeError::NoVault(_))));
    for bad in ["", ".", "..", "a/b", "a b", ".hidden", "ä"] {
        assert!(matches!(home.vault(bad), Err(HomeError::Name(_))), "{bad:?}");
    }
    let set_up = |name: &str, scheme: Option<&str>| {
        let vault = home.vault(name).unwrap();
        vault.make().unwrap();
        let scheme = scheme.map(|scheme| scheme.parse().unwrap());
        let profile = Profile { cluster: ClusterId([1; 32]), vault: VaultId([2; 32]), scheme };
        vault.set_profile(&profile).unwrap();
        assert_eq!(vault.profile().unwrap(), profile);
    };
    set_up("photos", None);
    assert_eq!(home.only_or_default(None).unwrap().name(), "photos");
    set_up("work", Some("5+3"));
    assert!(matches!(home.only_or_default(None), Err(HomeError::Several(_))));
    assert!(matches!(home.only_or_default(Some("other")), Err(HomeError::Unknown { .. })));
    assert_eq!(home.only_or_default(Some("work")).unwrap().name(), "work");
    set_up(DEFAULT_VAULT, None);
    assert_eq!(home.only_or_default(None).unwrap().name(), DEFAULT_VAULT);
    home.vault("half").unwrap().make().unwrap();
    assert_eq!(home.vaults().unwrap(), ["default", "photos", "work"]);
}

#[test]
fn state_is_kept_and_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Home::at(folder.path().into()).vault("v").unwrap();
    vault.make().unwrap();
    assert_eq!((vault.counter().unwrap(), vault.seen().unwrap()), (None, Seen::default()));
    let counter = Counter { number: 7, counter: 9, clean: true };
    vault.set_counter(&counter).unwrap();
    assert_eq!(vault.counter().unwrap(), Some(counter));
    let mut seen = Seen { committed_ms: 5, ..Seen::default() };
    seen.vector.set(7, 9);
    vault.set_seen(&seen).unwrap();
    assert_eq!(vault.seen().unwrap(), seen);
    for file in [COUNTER, SEEN] {
        let path = vault.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(vault.counter().unwrap(), None, "a new number will be taken");
    assert!(matches!(vault.seen(), Err(HomeError::Damaged { .. })));
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Home::at(folder.path().into()).vault("v").unwrap();
    vault.make().unwrap();
    let lock = vault.lock().unwrap();
    assert!(matches!(vault.lock(), Err(HomeError::Busy(_))));
    drop(lock);
    assert!(vault.lock().is_ok());
}
