//! The cluster's key as 24 words (BIP-39): shown when the cluster is founded, and taken by `potluck node restore-key`.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::Context;
use potluck_proto::key::SecretKey;

use super::DONE;
use crate::identity;

/// Longest input that can be 24 words, in bytes.
const INPUT_LIMIT: u64 = 4096;

/// Prints the words, numbered.
pub(super) fn show(key: &SecretKey) -> anyhow::Result<()> {
    let words = bip39::Mnemonic::from_entropy(&*key.seed()).context("the cluster key cannot be shown")?;
    let words: Vec<&str> = words.words().collect();
    for (row, line) in words.chunks(6).enumerate() {
        let numbered = line.iter().enumerate().map(|(column, word)| format!("{:>2} {word:<10}", row * 6 + column + 1));
        println!("  {}", numbered.collect::<Vec<_>>().join(" ").trim_end());
    }
    Ok(())
}

/// Reads the words and gives the node the key.
pub(super) fn restore(folder: &Path) -> anyhow::Result<u8> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("Type or paste the 24 words of the cluster's key, then press Ctrl-D on a line of its own:");
    }
    let mut text = String::new();
    input.lock().take(INPUT_LIMIT).read_to_string(&mut text).context("the words cannot be read")?;
    let cert = identity::restore_cluster_key(folder, &seed(&text)?)?;
    println!("Node {} has the key of cluster {}: it can invite.", cert.node().short(), cert.cluster().short());
    Ok(DONE)
}

/// The key's seed from words as they were shown: numbers between them, line breaks and capitals do not matter.
fn seed(text: &str) -> anyhow::Result<[u8; 32]> {
    let words: Vec<String> = text
        .split_whitespace()
        .map(|word| word.trim_matches(|letter: char| !letter.is_alphabetic()).to_lowercase())
        .filter(|word| !word.is_empty())
        .collect();
    anyhow::ensure!(words.len() == 24, "a cluster's key has 24 words, these are {}", words.len());
    let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &words.join(" "));
    let entropy = mnemonic.context("these words are no key: look for a slip of the pen, or two that changed places")?;
    <[u8; 32]>::try_from(&entropy.to_entropy()[..]).ok().context("these words are no key of 256 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_as_they_were_shown_by_the_right_node_only() {
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
        let (folder, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (key, _) = identity::found(folder.path(), None, 1, &mut rng).unwrap();
        identity::found(foreign.path(), None, 1, &mut rng).unwrap();
        let words = bip39::Mnemonic::from_entropy(&*key.seed()).unwrap().to_string();
        let shown: Vec<String> =
            words.split(' ').enumerate().map(|(at, word)| format!("{} {word}\n", at + 1)).collect();
        let seed_read = seed(&shown.concat().to_uppercase()).unwrap();
        assert_eq!(seed_read, *key.seed());

        std::fs::remove_file(folder.path().join("cluster.key")).unwrap();
        identity::restore_cluster_key(folder.path(), &seed_read).unwrap();
        let (opened, _lock) = identity::Identity::open(folder.path()).unwrap();
        assert_eq!(opened.cluster_key.unwrap().public(), key.public());
        let refused = identity::restore_cluster_key(foreign.path(), &seed_read).unwrap_err();
        assert!(refused.to_string().contains("another cluster"), "{refused}");

        assert!(seed("one two").unwrap_err().to_string().contains("these are 2"));
        let swapped: Vec<&str> = words.split(' ').rev().collect();
        assert!(seed(&swapped.join(" ")).is_err());
    }
}
