//! Makes a connection to a peer: tries its addresses, each a little after the one before, and takes the first that
//! passes the Hello.

use std::net::SocketAddr;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{ConnectError, Connection, ConnectionError};
use tokio::time::{sleep, timeout};

use super::limits::{ADDRESSES, STAGGER};
use super::shared::Shared;
use super::{CallError, Caller, Gate, Peer, Role, close_code, hello, link, tls};
use crate::key::PublicKey;

/// Makes a connection to `peer`, within the dial timeout.
pub(super) async fn dial(shared: &Shared, peer: &Peer) -> Result<(Connection, Caller), CallError> {
    let unreachable = |reason: String| CallError::Unreachable { peer: peer.key, reason };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in &peer.addresses {
        if !addresses.contains(address) && addresses.len() < ADDRESSES {
            addresses.push(*address);
        }
    }
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .zip(0u32..)
        .map(|(&address, number)| async move {
            sleep(STAGGER * number).await;
            attempt(shared, peer.key, address).await.map_err(|error| (address, error))
        })
        .collect();
    let mut worst: Option<CallError> = None;
    let all = async {
        while let Some(result) = attempts.next().await {
            match result {
                Ok(made) => return Some(made),
                Err((address, error)) => {
                    tracing::debug!(peer = ?peer.key, %address, %error, "cannot connect");
                    if worst.as_ref().is_none_or(|worst| weight(worst) < weight(&error)) {
                        worst = Some(error);
                    }
                }
            }
        }
        None
    };
    match timeout(shared.limits.dial_timeout, all).await {
        Ok(Some((connection, role))) => {
            let caller = Caller { key: peer.key, role, address: link::address_of(&connection) };
            Ok((connection, caller))
        }
        Ok(None) => Err(worst.unwrap_or_else(|| unreachable("it has no address".into()))),
        // An answer that was heard says more than the silence of the other addresses.
        Err(_) => Err(worst.filter(|error| weight(error) > 0).unwrap_or_else(|| {
            unreachable(format!("no answer from {addresses:?} within {:?}", shared.limits.dial_timeout))
        })),
    }
}

/// How much an error tells: a refusal more than a stranger at the address, and that more than silence.
fn weight(error: &CallError) -> u8 {
    match error {
        CallError::Refused(_) | CallError::Unaccepted(_) => 3,
        CallError::WrongPeer { .. } => 2,
        CallError::BadReply(_) => 1,
        _ => 0,
    }
}

async fn attempt(shared: &Shared, key: PublicKey, address: SocketAddr) -> Result<(Connection, Role), CallError> {
    let unreachable = |reason: String| CallError::Unreachable { peer: key, reason };
    let connecting = shared.quinn.connect(address, &tls::server_name(key)).map_err(|error| match error {
        ConnectError::EndpointStopping => CallError::Stopped("its socket has failed"),
        error => unreachable(error.to_string()),
    })?;
    let connection = connecting.await.map_err(|error| {
        if tls::is_wrong_key(&error) {
            return CallError::WrongPeer { expected: key };
        }
        unreachable(match error {
            ConnectionError::TimedOut => format!("no answer from {address}"),
            error => format!("{address}: {error}"),
        })
    })?;
    // The handshake has compared already; whoever is trusted with data is compared again.
    if tls::peer_key(&connection) != Some(key) {
        connection.close(close_code::REFUSED, b"wrong key");
        return Err(CallError::WrongPeer { expected: key });
    }
    let gate: &dyn Gate = &*shared.gate;
    match hello::say(&connection, gate, key).await {
        Ok(role) => Ok((connection, role)),
        Err(CallError::Closed(reason)) => Err(unreachable(reason)),
        Err(error) => Err(error),
    }
}
