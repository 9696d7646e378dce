//! Messages of the wire, and tables merged from them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potluck_proto::id::ClusterId;
use potluck_proto::member::MemberTable;
use potluck_proto::wire::{Reply, Request, Table};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(&request.encode_to_vec()[..]).as_ref(), Ok(&request));
    }
    let _ = Reply::decode(data);
    if let Ok(table) = Table::decode(data) {
        MemberTable::new(ClusterId([0; 32])).merge(&table);
    }
});
