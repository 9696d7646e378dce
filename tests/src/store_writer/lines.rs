//! What a writer says of its work: a line before each operation and one after it, in words that a person can read too.

use std::fmt;
use std::str::{FromStr, SplitWhitespace};

use anyhow::{Context, Result, bail};

/// A shard of a [`super::content::Content`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardName {
    /// The thread whose it is.
    pub writer: u32,
    /// Which of its stripes.
    pub stripe: u32,
    /// Which of the stripe's shards.
    pub index: u32,
}

/// A head of a [`super::content::Content`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadName {
    /// The thread whose it is.
    pub writer: u32,
    /// Which of its heads.
    pub head: u32,
}

/// A change of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is put, or taken out of the trash.
    Put(ShardName),
    /// It goes to the trash until a time, in milliseconds.
    Trash(ShardName, u64),
    /// It is taken out of the trash.
    Revive(ShardName),
    /// It is recorded that enough siblings exist.
    Complete(ShardName),
    /// It is deleted.
    Delete(ShardName),
    /// A head gets a value.
    Keep(HeadName, u32),
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The store is open, and the threads begin.
    Ready,
    /// This is about to be asked for.
    Begun(Operation),
    /// The store has said that it is done.
    Done(Operation),
    /// The store has said that it is full: the operation may be found done after a crash, and may not.
    Full(Operation),
    /// A segment was emptied.
    Emptied(u64),
    /// Something that a store never may do, or that its disk did.
    Wrong(String),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, shard) = match self {
            Self::Keep(name, value) => return write!(f, "keep {} {} {value}", name.writer, name.head),
            Self::Put(shard) => ("put", shard),
            Self::Trash(shard, _) => ("trash", shard),
            Self::Revive(shard) => ("revive", shard),
            Self::Complete(shard) => ("complete", shard),
            Self::Delete(shard) => ("delete", shard),
        };
        write!(f, "{verb} {} {} {}", shard.writer, shard.stripe, shard.index)?;
        if let Self::Trash(_, until_ms) = self { write!(f, " {until_ms}") } else { Ok(()) }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Begun(operation) => write!(f, "begun {operation}"),
            Self::Done(operation) => write!(f, "done {operation}"),
            Self::Full(operation) => write!(f, "full {operation}"),
            Self::Emptied(segment) => write!(f, "emptied {segment}"),
            Self::Wrong(what) => write!(f, "wrong {}", what.replace('\n', " ")),
        }
    }
}

fn number<T: FromStr>(words: &mut SplitWhitespace<'_>) -> Result<T> {
    let word = words.next().context("a number is missing")?;
    word.parse().ok().with_context(|| format!("{word} is no number"))
}

fn operation(words: &mut SplitWhitespace<'_>) -> Result<Operation> {
    let verb = words.next().context("a verb is missing")?;
    let writer = number(words)?;
    if verb == "keep" {
        return Ok(Operation::Keep(HeadName { writer, head: number(words)? }, number(words)?));
    }
    let shard = ShardName { writer, stripe: number(words)?, index: number(words)? };
    Ok(match verb {
        "put" => Operation::Put(shard),
        "trash" => Operation::Trash(shard, number(words)?),
        "revive" => Operation::Revive(shard),
        "complete" => Operation::Complete(shard),
        "delete" => Operation::Delete(shard),
        other => bail!("{other} is no operation"),
    })
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let read = match words.next() {
            Some("ready") => Self::Ready,
            Some("begun") => Self::Begun(operation(&mut words)?),
            Some("done") => Self::Done(operation(&mut words)?),
            Some("full") => Self::Full(operation(&mut words)?),
            Some("emptied") => Self::Emptied(number(&mut words)?),
            Some("wrong") => Self::Wrong(line.trim_start_matches("wrong ").into()),
            _ => bail!("{line:?} says nothing"),
        };
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let (shard, head) = (ShardName { writer: 1, stripe: 2, index: 0 }, HeadName { writer: 3, head: 4 });
        let operations = [
            Operation::Put(shard),
            Operation::Trash(shard, 55),
            Operation::Revive(shard),
            Operation::Complete(shard),
            Operation::Delete(shard),
            Operation::Keep(head, 77),
        ];
        let mut lines = vec![Line::Ready, Line::Emptied(12), Line::Wrong("bytes of 1 2 0".into())];
        for operation in operations {
            lines.extend([Line::Begun(operation), Line::Done(operation), Line::Full(operation)]);
        }
        for line in lines {
            assert_eq!(line.to_string().parse::<Line>().unwrap(), line);
        }
        for wrong in ["", "begun", "done put 1 2", "full eat 1 2 3", "emptied x"] {
            assert!(wrong.parse::<Line>().is_err(), "{wrong}");
        }
    }
}
