//! Merging what two devices did to the same vault without knowing of each other: three-way, path by path.
//!
//! Against the common ancestor, a change of one side applies, a change beats a deletion, and of two changes the later one
//! stays while the other is saved beside it as a conflict copy. Without an ancestor (the empty tree) all is change.
//! Where one side's file has the name of the other's directory, the directory stays and the file is saved as a conflict
//! copy. Nothing that either side wrote is lost.
//!
//! The result does not depend on which side is called ours, nor, as long as no path was changed differently by two
//! sides, on the order in which several are merged; with conflicts, other orders may keep other names. Merging a state
//! with itself, or with its own ancestor as both side and base, changes nothing.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::entry::Entry;
use super::keys::VaultKeys;
use super::path::{self, PATH_LIMIT};
use super::tree::{Change, Diff, Root, Scan, get};
use super::{NodeStore, VaultError};

/// Longest file name that common file systems take, in bytes.
const NAME_LIMIT: usize = 255;

/// Longest device label in the name of a conflict copy, in bytes.
const LABEL_LIMIT: usize = 64;

/// One of the two states.
#[derive(Debug, Clone)]
pub struct Side {
    /// Its files.
    pub files: Root,
    /// What people call the device that wrote it.
    pub device: String,
    /// When it was committed, milliseconds since 1970.
    pub time_ms: u64,
}

/// A path that both sides changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The path; it has the later version, or is a directory now.
    pub path: Bytes,
    /// Where the earlier version, or the file in the directory's place, was saved.
    pub copy: Bytes,
}

/// A file of the result. What comes below its path in the order of keys may yet show that it is a directory's.
struct File<'s> {
    key: Bytes,
    entry: Entry,
    side: &'s Side,
}

/// What a merge comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// What to apply to our files, sorted by path. As many as paths differ.
    pub changes: Vec<Change>,
    /// What people should look at, sorted by path.
    pub conflicts: Vec<Conflict>,
}

/// Merges two states that come from `base`; the empty tree if they have no common ancestor.
pub async fn merge<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    base: &Root,
    ours: &Side,
    theirs: &Side,
) -> Result<Merged, VaultError> {
    let mut copies: Vec<(Bytes, Entry, &Side)> = Vec::new();
    let mut changes: Vec<Change> = Vec::new();
    // Files of the result whose keys begin the key that is looked at, shortest first; a side alone has no file beside a
    // directory of its name, so where both sides together have, both are among the differences.
    let mut files: Vec<File<'_>> = Vec::new();
    let mut displaced: BTreeSet<Bytes> = BTreeSet::new();
    let mut diff = Diff::new(keys, &ours.files, &theirs.files);
    while let Some(difference) = diff.next(store).await? {
        let (key, our, their) = (difference.key, difference.left, difference.right);
        let old = get(store, keys, base, &key).await?;
        let verdict = decide(keys, old.as_ref(), (our.as_ref(), ours), (their.as_ref(), theirs));
        let ours_stays = matches!(verdict, Verdict::Ours | Verdict::Both { ours_first: true });
        let (kept, lost) = if ours_stays { ((our, ours), (their, theirs)) } else { ((their, theirs), (our, ours)) };
        if let Verdict::Both { .. } = verdict {
            // Both are there, or it would be no conflict.
            copies.extend(lost.0.map(|entry| (key.clone(), entry, lost.1)));
        }
        if !ours_stays {
            changes.push((key.clone(), kept.0.clone()));
        }
        let (Some(entry), side) = kept else { continue };
        files.retain(|file| key.starts_with(&file.key));
        for file in files.extract_if(.., |file| key.get(file.key.len()) == Some(&b'/')) {
            displaced.insert(file.key.clone());
            copies.push((file.key, file.entry, file.side));
        }
        if !key.ends_with(b"/") {
            files.push(File { key, entry, side });
        }
    }
    changes.retain(|(key, _)| !displaced.contains(key));
    changes.extend(displaced.into_iter().map(|key| (key, None)));
    copies.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut conflicts, mut taken) = (Vec::new(), BTreeSet::new());
    for (path, entry, side) in copies {
        let copy = free_name(store, keys, &path, &entry, side, [&ours.files, &theirs.files], &taken).await?;
        taken.insert(copy.clone());
        changes.push((copy.clone(), Some(entry)));
        conflicts.push(Conflict { path, copy });
    }
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Merged { changes, conflicts })
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ours,
    Theirs,
    Both { ours_first: bool },
}

/// Whose entry a path gets; the two differ.
fn decide(
    keys: &VaultKeys,
    old: Option<&Entry>,
    (our, ours): (Option<&Entry>, &Side),
    (their, theirs): (Option<&Entry>, &Side),
) -> Verdict {
    let same = |a: Option<&Entry>, b: Option<&Entry>| a.map(Entry::identity) == b.map(Entry::identity);
    let (our_entry, their_entry) = match (our, their) {
        _ if same(our, old) => return Verdict::Theirs,
        _ if same(their, old) => return Verdict::Ours,
        (None, _) => return Verdict::Theirs,
        (_, None) => return Verdict::Ours,
        (Some(our), Some(their)) => (our, their),
    };
    let (our_content, their_content) = (our_entry.content_id(keys), their_entry.content_id(keys));
    let rank = |entry: &Entry, content, side: &Side| (entry.mtime_ns, side.time_ms, content, entry.identity());
    let ours_first = rank(our_entry, our_content, ours) > rank(their_entry, their_content, theirs);
    match (our_content == their_content, ours_first) {
        // Equal bytes: only times or permissions differ, and a copy would save nothing.
        (true, true) => Verdict::Ours,
        (true, false) => Verdict::Theirs,
        (false, ours_first) => Verdict::Both { ours_first },
    }
}

/// A name for a conflict copy that neither side has, not even as a directory's, nor another copy of this merge.
async fn free_name<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    path: &[u8],
    entry: &Entry,
    side: &Side,
    sides: [&Root; 2],
    taken: &BTreeSet<Bytes>,
) -> Result<Bytes, VaultError> {
    let mut number = 1u64;
    loop {
        let name = copy_name(path, entry, side, number);
        let mut free = !taken.contains(&name);
        for root in sides {
            free = free && get(store, keys, root, &name).await?.is_none();
            free = free && Scan::new(keys, root, path::dir_of(&name)).next(store).await?.is_none();
        }
        if free {
            return Ok(name);
        }
        number += 1;
    }
}

/// `dir/name (conflict DEVICE DATE).ext`; from the second on with a number.
fn copy_name(path: &[u8], entry: &Entry, side: &Side, number: u64) -> Bytes {
    let (dir, slash) = (path::parent(path), if path.ends_with(b"/") { &b"/"[..] } else { b"" });
    let name = path::name(path);
    // What is hidden or only dots has no extension; a very long one is no extension either.
    let dot = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0 && name.len() - dot <= 16);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let changed_ms = if entry.mtime_ns > 0 { entry.mtime_ns as u64 / 1_000_000 } else { side.time_ms };
    let count = if number > 1 { format!(" {number}") } else { String::new() };
    let mark = format!(" (conflict {} {}{count})", label(&side.device), date(changed_ms));
    let room = NAME_LIMIT.saturating_sub(mark.len() + extension.len());
    let file = [clip(stem, room), mark.as_bytes(), extension, slash].concat();
    // Where even that is too long for its directory, the copy goes to the top.
    let dir = if dir.len() + file.len() > PATH_LIMIT { b"" } else { dir };
    [dir, &file].concat().into()
}

/// The longest start of `bytes` within `limit` that does not split a UTF-8 character.
fn clip(bytes: &[u8], limit: usize) -> &[u8] {
    let mut end = bytes.len().min(limit);
    while end > 0 && end < bytes.len() && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &bytes[..end]
}

fn label(device: &str) -> String {
    let clean = |letter: char| if letter.is_control() || matches!(letter, '/' | '\\' | ':') { '-' } else { letter };
    let mut label = String::new();
    for letter in device.chars().map(clean) {
        if label.len() + letter.len_utf8() > LABEL_LIMIT {
            break;
        }
        label.push(letter);
    }
    label
}

/// The day in UTC as YYYY-MM-DD, by the civil-from-days algorithm of H. Hinnant.
fn date(ms: u64) -> String {
    const DAY_MS: u64 = 86_400_000;
    // Days since 1 March of year 0, in eras of 400 years.
    let days = ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests;
