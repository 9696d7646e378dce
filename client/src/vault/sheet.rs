//! The recovery sheet: what a person keeps on paper to get everything back on a new machine.
//!
//! Twenty-four words, the cluster's id, and a few nodes to ask. It is printed for people and read back from whatever
//! they type: numbers before words, spacing and upper case do not matter, lines that begin with `#` are explanation.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use potluck_proto::id::{ClusterId, NodeId};
use zeroize::Zeroizing;

use super::keys::{VaultSecret, WORD_COUNT, WordsError};

/// Most nodes on a sheet.
pub const NODES_LIMIT: usize = 3;

/// Digits of a key in text.
const KEY_DIGITS: usize = 64;

/// A node to ask: its key, and where it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SheetNode {
    /// Its key, which it has to prove.
    pub node: NodeId,
    /// Its address.
    pub address: SocketAddr,
}

/// What a recovery sheet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySheet {
    /// The vault's secret.
    pub secret: VaultSecret,
    /// The cluster that keeps the vault.
    pub cluster: ClusterId,
    /// Nodes to ask; at most [`NODES_LIMIT`] are printed.
    pub nodes: Vec<SheetNode>,
}

/// Why a text is no recovery sheet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SheetError {
    /// The words are not a vault's.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The cluster's id is missing or has the wrong length.
    #[error("the cluster's id has {KEY_DIGITS} hexadecimal digits, here are {0}")]
    Cluster(usize),
    /// A node is not `KEY@ADDRESS:PORT`.
    #[error("{0:?} is no node: it should be a key of {KEY_DIGITS} hexadecimal digits, @, and an address with a port")]
    Node(String),
}

impl fmt::Display for SheetNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.address)
    }
}

impl FromStr for SheetNode {
    type Err = SheetError;

    fn from_str(text: &str) -> Result<Self, SheetError> {
        let wrong = || SheetError::Node(text.to_string());
        let (key, address) = text.split_once('@').ok_or_else(wrong)?;
        Ok(Self { node: key.parse().map_err(|_| wrong())?, address: address.parse().map_err(|_| wrong())? })
    }
}

impl fmt::Display for RecoverySheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COLUMNS: usize = 4;
        writeln!(f, "# Potluck recovery sheet")?;
        writeln!(f, "#")?;
        writeln!(
            f,
            "# Write this down on paper and keep it where fire and thieves do not come. It is all that you need"
        )?;
        writeln!(f, "# to get your files back on a new machine. Whoever reads the words can read your files.")?;
        writeln!(f, "\nWords:")?;
        let words = self.secret.words();
        let rows = words.len().div_ceil(COLUMNS);
        for row in 0..rows {
            // Numbered down the columns, as people read them off.
            for index in (row..words.len()).step_by(rows) {
                write!(f, "  {:>2}. {:<9}", index + 1, words[index])?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\nCluster:")?;
        let cluster = self.cluster.to_string();
        for half in [&cluster[..KEY_DIGITS / 2], &cluster[KEY_DIGITS / 2..]] {
            let groups: Vec<&str> = (0..4).map(|group| &half[8 * group..8 * group + 8]).collect();
            writeln!(f, "  {}", groups.join(" "))?;
        }
        writeln!(f, "\nNodes:")?;
        self.nodes.iter().take(NODES_LIMIT).try_for_each(|node| writeln!(f, "  {node}"))
    }
}

#[derive(PartialEq)]
enum Section {
    Unknown,
    Words,
    Cluster,
    Nodes,
}

/// What was typed, sorted into the three parts. Words carry their number, if one was given.
#[derive(Default)]
struct Typed {
    words: Zeroizing<Vec<String>>,
    numbers: Vec<Option<usize>>,
    cluster: String,
    nodes: Vec<String>,
}

impl Typed {
    fn read(text: &str) -> Self {
        let (mut typed, mut section, mut key) = (Self::default(), Section::Unknown, String::new());
        let mut number = None;
        for token in text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace) {
            let token = Zeroizing::new(token.to_lowercase());
            match token.as_str() {
                "words:" => section = Section::Words,
                "cluster:" => section = Section::Cluster,
                "nodes:" => section = Section::Nodes,
                _ if token.contains('@') => typed.nodes.push(std::mem::take(&mut key) + &token),
                _ if is_hex(&token) && section == Section::Nodes => key += &token,
                _ if is_hex(&token) && typed.cluster.len() < KEY_DIGITS && takes_hex(&section, &token) => {
                    typed.cluster += &token;
                }
                _ => {
                    let (before, word) = split_number(&token);
                    number = before.or(number);
                    if !word.is_empty() {
                        typed.words.push(word.to_string());
                        typed.numbers.push(number.take());
                    }
                }
            }
        }
        if !key.is_empty() {
            typed.nodes.push(key);
        }
        typed
    }

    /// The words in the order of their numbers, where each has its own; else as they came.
    fn phrase(&self) -> Zeroizing<String> {
        let mut slots: Vec<Option<&str>> = vec![None; self.words.len()];
        for (word, number) in self.words.iter().zip(&self.numbers) {
            if let Some(slot) = number.and_then(|number| slots.get_mut(number.wrapping_sub(1))) {
                *slot = Some(word);
            }
        }
        let numbered: Option<Vec<&str>> = slots.into_iter().collect();
        let words = numbered.unwrap_or_else(|| self.words.iter().map(String::as_str).collect());
        Zeroizing::new(words.join(" "))
    }
}

fn is_hex(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// No word of the list is hexadecimal and as long as the printed groups; shorter groups, as "add", need the heading.
fn takes_hex(section: &Section, token: &str) -> bool {
    *section == Section::Cluster || token.len() >= 8
}

/// Splits "12.", "12)", "12:" or "12" off a token.
fn split_number(token: &str) -> (Option<usize>, &str) {
    let rest = token.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let number = token[..token.len() - rest.len()].parse().ok();
    (number, rest.trim_start_matches(['.', ')', ':']).trim_end_matches([',', ';', '.']))
}

impl FromStr for RecoverySheet {
    type Err = SheetError;

    fn from_str(text: &str) -> Result<Self, SheetError> {
        let typed = Typed::read(text);
        if typed.words.len() != WORD_COUNT {
            return Err(WordsError::Count(typed.words.len()).into());
        }
        let secret = VaultSecret::from_words(&typed.phrase())?;
        let cluster = typed.cluster.parse().map_err(|_| SheetError::Cluster(typed.cluster.len()))?;
        let nodes = typed.nodes.iter().map(|node| node.parse()).collect::<Result<_, _>>()?;
        Ok(Self { secret, cluster, nodes })
    }
}

#[cfg(test)]
mod tests {
    use potluck_proto::id::{ClusterId, NodeId};

    use super::{RecoverySheet, SheetError, SheetNode};
    use crate::vault::keys::{VaultSecret, WordsError};

    fn sheet(secret: [u8; 32], nodes: usize) -> RecoverySheet {
        let node = |index: usize| SheetNode {
            node: NodeId([index as u8 + 1; 32]),
            address: format!("192.0.2.{index}:7700").parse().unwrap(),
        };
        RecoverySheet {
            secret: VaultSecret::from_bytes(secret),
            cluster: ClusterId(std::array::from_fn(|i| 7 * i as u8)),
            nodes: (0..nodes).map(node).collect(),
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_is_read_back(secret in proptest::prelude::any::<[u8; 32]>(), nodes in 0usize..4) {
            let sheet = sheet(secret, nodes);
            proptest::prop_assert_eq!(sheet.to_string().parse(), Ok(sheet.clone()));
            proptest::prop_assert_eq!(sheet.to_string().to_uppercase().parse(), Ok(sheet));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,200}") {
            let _ = text.parse::<RecoverySheet>();
        }
    }

    #[test]
    fn what_people_type_is_read() {
        let sheet = sheet([0x5a; 32], 2);
        let words = sheet.secret.words();
        let typed = format!("{}\n{}\n{} {}", words.join(" "), sheet.cluster, sheet.nodes[0], sheet.nodes[1]);
        assert_eq!(typed.parse(), Ok(sheet.clone()));
        let numbered: Vec<String> = words.iter().enumerate().map(|(i, word)| format!("{}.{word},", i + 1)).collect();
        let typed = format!("{}\n cluster: {}\nnodes:\n", numbered.join("\n"), sheet.cluster);
        let (key, address) = (sheet.nodes[0].node.to_string(), sheet.nodes[0].address);
        let wrapped = format!("{typed}{}\n {}@{address}\n{}", &key[..40], &key[40..], sheet.nodes[1]);
        assert_eq!(wrapped.parse(), Ok(sheet));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = sheet([0x5a; 32], 1).to_string();
        let words = sheet([0x5a; 32], 1).secret.words();
        let wrong = text.replacen(&format!(" 1. {}", words[0]), " 1. potluck", 1);
        let unknown = WordsError::Unknown { position: 1, word: "potluck".into() };
        assert_eq!(wrong.parse::<RecoverySheet>(), Err(SheetError::Words(unknown)));
        let short = text.replacen("070e15", "", 1);
        assert!(matches!(short.parse::<RecoverySheet>(), Err(SheetError::Cluster(58))), "{short}");
        let node = text.replace(":7700", "");
        assert!(matches!(node.parse::<RecoverySheet>(), Err(SheetError::Node(_))));
        assert_eq!("".parse::<RecoverySheet>(), Err(SheetError::Words(WordsError::Count(0))));
    }
}
