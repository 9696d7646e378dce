//! How QUIC is set up: sizes, windows and times, each with its reason.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;

use super::limits::{CONNECTION_WINDOW, EARLY_WINDOW, STRANGER_REQUESTS};
use super::tls::{ResetKey, Tls};
use super::{BindError, Limits};
use crate::key::SecretKey;

/// Packets start at what every path carries.
const INITIAL_MTU: u16 = 1200;

/// Largest packet that is probed for. Segmentation offload sends ten packets at once, and ten times the packet size
/// above 65,535 bytes fails in silence; 6,500 is the fastest that stays below.
const LARGEST_MTU: u16 = 6500;

/// The most that one stream may send ahead of its reader, in bytes: 8 MB lets a stream run at 80 MB/s over 100 ms.
const STREAM_WINDOW: u32 = 8 << 20;

/// The most that a connection keeps unacknowledged, in bytes.
const SEND_WINDOW: u64 = 8 << 20;

/// Datagrams waiting to be read or sent, in bytes each: some 200 of the largest. The oldest are dropped.
const DATAGRAM_BUFFER: usize = 256 << 10;

/// First guess of the round-trip time: a lost first packet is sent again after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Incoming connections that wait to be looked at, and what they may send meanwhile, in bytes, each and together.
const WAITING_INCOMING: (usize, u64, u64) = (256, 64 << 10, 4 << 20);

/// What the kernel is asked to buffer, in bytes: a burst of a full window while this process is not scheduled.
const SOCKET_BUFFER: usize = 4 << 20;

/// The configurations of one endpoint.
pub(super) struct Quic {
    pub(super) endpoint: EndpointConfig,
    pub(super) client: ClientConfig,
    pub(super) server: ServerConfig,
}

impl Quic {
    pub(super) fn new(identity: &SecretKey, limits: &Limits, rng_seed: Option<[u8; 32]>) -> Result<Self, BindError> {
        let unusable = |error: &dyn std::fmt::Display| BindError::Tls(error.to_string());
        let tls = Tls::new(identity).map_err(|error| unusable(&error))?;
        let reset_key = ResetKey::new(identity);
        let connection_ids = reset_key.connection_ids();

        let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)));
        endpoint.max_udp_payload_size(LARGEST_MTU).map_err(|error| unusable(&error))?;
        endpoint.rng_seed(rng_seed);

        let idle = IdleTimeout::try_from(limits.idle_timeout).map_err(|error| unusable(&error))?;
        // Until the Hello is done: one stream for it on the accepting side, none on the dialling side.
        let mut client = ClientConfig::new(tls.client);
        client.transport_config(Arc::new(transport(limits, idle, 0)));
        let mut server = ServerConfig::with_crypto(tls.server);
        server.transport_config(Arc::new(transport(limits, idle, 1)));
        let (count, each, together) = WAITING_INCOMING;
        server.max_incoming(count).incoming_buffer_size(each).incoming_buffer_size_total(together);
        Ok(Self { endpoint, client, server })
    }
}

fn transport(limits: &Limits, idle: IdleTimeout, streams: u32) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_MTU);
    let mut config = TransportConfig::default();
    config
        .initial_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(EARLY_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .keep_alive_interval(Some(limits.keep_alive))
        .max_idle_timeout(Some(idle));
    config
}

/// Widens the narrow limits that hold until the Hello: the other side is admitted.
pub(super) fn widen(connection: &quinn::Connection, streams: u32) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

/// Lets a stranger ask: a few short requests at a time.
pub(super) fn widen_for_stranger(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STRANGER_REQUESTS));
}

/// A UDP socket on `address`, for both IP versions where it is an IPv6 one, with large buffers where the system lets.
pub(super) fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        tracing::debug!(%error, "this system's IPv6 sockets do not take IPv4");
    }
    for result in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = result {
            tracing::debug!(%error, "the socket's buffers stay small");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

const _: () = assert!(LARGEST_MTU as u32 * 10 <= 65_535);
