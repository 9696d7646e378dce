//! Takes incoming connections, as far as the limits go.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::limits::HANDSHAKES;
use super::shared::{Shared, State};
use super::{Caller, Gate, close_code, hello, link, tls};

/// Accepts connections until the endpoint ends; if it ended by itself, says so.
pub(super) async fn run(shared: Arc<Shared>) {
    let door = Door {
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        connections: Arc::new(Semaphore::new(shared.limits.connections.clamp(1, Semaphore::MAX_PERMITS))),
        per_ip: Arc::default(),
    };
    while let Some(incoming) = shared.quinn.accept().await {
        door.open(&shared, incoming);
    }
    shared.state.send_if_modified(|state| {
        let failed = !matches!(state, State::Closed);
        if failed {
            tracing::error!("the endpoint's socket has failed: nothing is sent or received any more");
            *state = State::Failed;
        }
        failed
    });
}

/// Connections by the network that they come from.
type PerIp = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

struct Door {
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    per_ip: PerIp,
}

impl Door {
    fn open(&self, shared: &Arc<Shared>, incoming: quinn::Incoming) {
        let serving = shared.service.get().is_some() && *shared.state.borrow() == State::Open;
        if !serving {
            shared.counters.turned_away.one();
            return incoming.refuse();
        }
        // Under load, whoever cannot prove its address costs one packet and no memory.
        let crowded = self.handshakes.available_permits() < HANDSHAKES / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let places = (
            self.handshakes.clone().try_acquire_owned(),
            self.connections.clone().try_acquire_owned(),
            self.ip_place(incoming.remote_address().ip(), shared.limits.connections_per_ip),
        );
        let (Ok(handshake), Ok(connection), Some(ip)) = places else {
            shared.counters.turned_away.one();
            return incoming.refuse();
        };
        tokio::spawn(accept(shared.clone(), incoming, handshake, connection, ip));
    }

    fn ip_place(&self, ip: IpAddr, limit: usize) -> Option<IpPlace> {
        let network = network(ip);
        if network.is_loopback() {
            return Some(IpPlace(None));
        }
        let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_ip.entry(network).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(IpPlace(Some((self.per_ip.clone(), network))))
    }
}

/// Whom one address counts for: an IPv4 address for itself, an IPv6 address for its /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip => ip,
    }
}

/// One connection's place among those of its address.
struct IpPlace(Option<(PerIp, IpAddr)>);

impl Drop for IpPlace {
    fn drop(&mut self) {
        let Some((per_ip, network)) = &self.0 else { return };
        let mut per_ip = per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_ip.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                per_ip.remove(network);
            }
        }
    }
}

async fn accept(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    _handshake: OwnedSemaphorePermit,
    connection_place: OwnedSemaphorePermit,
    ip_place: IpPlace,
) {
    let address = incoming.remote_address();
    match timeout(shared.limits.hello_timeout, handshake(&shared, incoming)).await {
        Ok(Ok((connection, caller))) => {
            shared.counters.accepted.one();
            shared.admit(connection, caller, false, Box::new((connection_place, ip_place)));
        }
        failed => {
            shared.counters.turned_away.one();
            let reason = failed.map_or("too slow".to_string(), |result| result.err().unwrap_or_default());
            tracing::debug!(%address, reason, "incoming connection turned away");
        }
    }
}

async fn handshake(shared: &Shared, incoming: quinn::Incoming) -> Result<(quinn::Connection, Caller), String> {
    let connecting = incoming.accept().map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let Some(key) = tls::peer_key(&connection) else {
        connection.close(close_code::REFUSED, b"no key");
        return Err("it has proved no key".into());
    };
    let gate: &dyn Gate = &*shared.gate;
    let role = hello::hear(&connection, gate, key).await?;
    let caller = Caller { key, role, address: link::address_of(&connection) };
    Ok((connection, caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::1"), "::1");
    }

    #[test]
    fn an_address_gets_its_places_back() {
        let door = Door {
            handshakes: Arc::new(Semaphore::new(1)),
            connections: Arc::new(Semaphore::new(1)),
            per_ip: Arc::default(),
        };
        let ip = "192.0.2.7".parse().unwrap();
        let (first, second) = (door.ip_place(ip, 2), door.ip_place(ip, 2));
        assert!(first.is_some() && second.is_some() && door.ip_place(ip, 2).is_none());
        drop((first, second));
        assert!(door.per_ip.lock().unwrap().is_empty());
        assert!((0..9).map(|_| door.ip_place("127.0.0.1".parse().unwrap(), 2)).all(|place| place.is_some()));
    }
}
