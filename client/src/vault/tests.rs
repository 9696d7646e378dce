//! The whole path without a network: a file becomes chunks, stripes, a tree and a commit, and is read back by range.

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

use super::chunker::Chunker;
use super::commit::{Commit, RootPointer};
use super::content::{ContentBuilder, Piece, Pieces, inline_file};
use super::entry::{Entry, Kind};
use super::keys::VaultSecret;
use super::memory::{MemoryStore, now};
use super::tree::{apply, lookup};
use super::{NodeStore, path};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn put(store: &mut MemoryStore, chunker: &Chunker, data: &[u8]) -> Entry {
    if let Some(entry) = inline_file(data) {
        return entry;
    }
    let mut builder = ContentBuilder::new();
    let mut push = |store: &mut MemoryStore, plain: &[u8]| {
        let (chunk, pointer) = store.put(plain).unwrap();
        now(builder.push(store, &chunk, pointer)).unwrap();
    };
    let mut ahead = data;
    while let Some(len) = chunker.cut(ahead, true) {
        let (plain, behind) = ahead.split_at(len);
        push(store, plain);
        ahead = behind;
    }
    let (size, content) = now(builder.finish(store)).unwrap();
    Entry { size, content, mode: 0o644, ..Entry::inline(Kind::File, Bytes::new()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn files_come_back_by_range(seed in 0u64..1000, len in 0usize..(20 << 20), from in 0usize..(20 << 20), to in 0usize..(20 << 20)) {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut store = MemoryStore::new(&keys);
        let chunker = Chunker::new(keys.chunking_seed());
        let files = [("docs/large", noise(seed, len)), ("docs/small", noise(seed, len % 300)), ("top", noise(seed, len / 9))];
        let changes: Vec<_> = files
            .iter()
            .map(|(name, data)| (path::file(name).unwrap(), Some(put(&mut store, &chunker, data))))
            .collect();
        let files_root = now(apply(&mut store, &keys, &None, changes)).unwrap();
        let commit = Commit {
            files: files_root,
            snapshots: None,
            parents: Vec::new(),
            vector: potluck_proto::head::VersionVector::default(),
            time_ms: 1,
            host: String::new(),
        };
        let (id, pending) = now(store.store(&commit)).unwrap();
        store.finish_stripe().unwrap();
        let sealed = RootPointer { id, pointer: store.resolve(&pending).unwrap() }.seal(&keys).unwrap();

        // From here on all that is known is the secret and the head's bytes.
        let root = RootPointer::open(&keys, &sealed).unwrap();
        let commit = now(Commit::load(&store, &keys, &root)).unwrap();
        for (name, data) in &files {
            let entry = now(lookup(&store, &keys, &commit.files, name)).unwrap().and_then(|(_, entry)| entry).unwrap();
            let mut pieces = Pieces::new(&entry, from as u64..to as u64);
            let mut read = Vec::new();
            while let Some(piece) = now(pieces.next(&store, &keys)).unwrap() {
                match piece {
                    Piece::Inline(bytes) => read.extend_from_slice(&bytes),
                    Piece::Chunk { chunk, from, to } => {
                        prop_assert_eq!(chunk.pointer.sealed().is_ok(), true);
                        let plain = now(store.load(&chunk.pointer)).unwrap();
                        read.extend_from_slice(&plain[from..to]);
                    }
                }
            }
            let end = to.min(data.len());
            prop_assert_eq!(&read[..], &data[from.min(end)..end]);
        }
    }
}
