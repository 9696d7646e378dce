//! The erasure code at every level that the machine has, against the crate: the same parity, and the same shards back from
//! any k, whole and in ranges, wherever the bytes lie.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potluck_proto::codec::{Codec, CodecError, Level};
use potluck_proto::stripe::Scheme;
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Longest shard of a small scheme, in bytes: past a block of the loop. Those of wide schemes are shorter, as the crate takes
/// its time.
const LEN_LIMIT: usize = 17_500;

fuzz_target!(|data: &[u8]| {
    let Some((&[k, m, len_low, len_high, shift, start, end, choice], rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    let (k, m) = (usize::from(k) % 64 + 1, usize::from(m) % 64);
    let len = usize::from(u16::from_le_bytes([len_low, len_high])) % (LEN_LIMIT / (1 + k * m / 64)) + 1;
    let shift = usize::from(shift) % 130;
    let Ok(scheme) = Scheme::new(k, m) else { return };
    // The rest of the input over and over, changed by each turn, so that a short one fills long shards.
    let held: Vec<u8> = (0..shift + k * len)
        .map(|at| rest.get(at % rest.len().max(1)).map_or(at as u8, |byte| byte.wrapping_add((at / rest.len()) as u8)))
        .collect();
    let plain = &held[shift..];

    let mut shards: Vec<Vec<u8>> = plain.chunks(len).map(<[u8]>::to_vec).collect();
    shards.resize(k + m, vec![0; len]);
    if m > 0 {
        ReedSolomon::new(k, m).and_then(|code| code.encode(&mut shards)).expect("k shards and room for m");
    }
    // Which are lost hangs on the input, as does their number, which may be more than m.
    let lost = |index: usize| rest.get(index).copied().unwrap_or(choice).wrapping_add(choice) & 1 == 1;
    let (wanted, present): (Vec<usize>, Vec<usize>) = (0..k + m).partition(|&index| lost(index));
    let range = usize::from(start) * len / 256..len - usize::from(end) * (len - usize::from(start) * len / 256) / 256;
    let given: Vec<(usize, &[u8])> = present.iter().map(|&index| (index, &shards[index][range.clone()])).collect();
    let expected: Vec<&[u8]> = wanted.iter().map(|&index| &shards[index][range.clone()]).collect();

    for level in Level::all() {
        let codec = Codec::at(scheme, level);
        let mut room = vec![0xa5; shift + m * len + 1];
        codec.encode(plain, &mut room[shift..shift + m * len]).expect("equal shards");
        assert!(room[shift..shift + m * len] == shards[k..].concat(), "{level} encodes {k}+{m}, {len} bytes");
        assert!(
            room[..shift].iter().chain(&room[shift + m * len..]).all(|&byte| byte == 0xa5),
            "{level} writes outside"
        );
        match codec.rebuild(&given, &wanted) {
            Ok(rebuilt) => assert!(rebuilt == expected, "{level} rebuilds {k}+{m}, {range:?} of {len}"),
            Err(error) => assert_eq!(error, CodecError::TooFew { present: present.len(), needed: k }),
        }
    }
});
