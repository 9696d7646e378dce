//! Against the crate's own encoding, all small loss patterns, and random large ones.
