//! The floor of the network: raw quinn in its best configuration, between two processes on loopback.
//!
//! The other process is this executable again, as [`PEER`]: it throws away what it gets, or sends what it is asked for. Both
//! ends know each other by nothing: this is a floor for speed, not a transport.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use potluck_proto::key::SecretKey;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::version::TLS13;

use crate::raw_key::{AnyKey, certified};

/// The bench's argument that makes it the other process.
pub const PEER: &str = "quic-peer";

/// Largest packet: ten times it, which is sent at once, must stay below 65,536 bytes.
const LARGEST_MTU: u16 = 6500;

/// What one stream, and a whole connection, may send ahead of the reader, in bytes.
const WINDOW: u32 = 64 << 20;

/// What the kernel is asked to buffer, in bytes.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes written at once.
const PIECE: usize = 1 << 20;

/// Longest run.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the other process.
    Put,
    /// From it.
    Get,
}

/// The time that `bytes` take, the handshake and the discovery of the packet size apart: a warm-up comes first.
///
/// # Errors
/// The other process cannot be started, or the connection fails.
pub fn measure(direction: Direction, bytes: u64) -> Result<Duration> {
    let mut peer = Command::new(std::env::current_exe()?);
    let mut peer = peer.arg(PEER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(peer.stdout.take().context("no output")?).read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse().context("the other process gave no address")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(async { tokio::time::timeout(PATIENCE, dial(address, direction, bytes)).await });
    peer.kill()?;
    peer.wait()?;
    measured.context("raw QUIC took too long")?
}

async fn dial(address: SocketAddr, direction: Direction, bytes: u64) -> Result<Duration> {
    /// Enough to find the packet size and to open the congestion window.
    const WARM_UP: u64 = 256 << 20;
    let endpoint = endpoint(None)?;
    let connection = endpoint.connect_with(client()?, address, "peer")?.await?;
    transfer(&connection, direction, WARM_UP).await?;
    let began = Instant::now();
    transfer(&connection, direction, bytes).await?;
    Ok(began.elapsed())
}

/// One stream: a request of nine bytes, then the bytes in the asked direction, then, for a put, one byte as receipt.
async fn transfer(connection: &quinn::Connection, direction: Direction, bytes: u64) -> Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&[u8::from(direction == Direction::Get)]).await?;
    send.write_all(&bytes.to_le_bytes()).await?;
    match direction {
        Direction::Put => {
            write(&mut send, bytes).await?;
            ensure!(drain(&mut receive).await? == 1, "no receipt");
        }
        Direction::Get => {
            send.finish()?;
            ensure!(drain(&mut receive).await? == bytes, "bytes are missing");
        }
    }
    Ok(())
}

async fn write(send: &mut quinn::SendStream, bytes: u64) -> Result<()> {
    let piece = Bytes::from(vec![7; PIECE]);
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE as u64) as usize;
        send.write_chunk(piece.slice(..length)).await?;
        left -= length as u64;
    }
    send.finish()?;
    Ok(())
}

async fn drain(receive: &mut quinn::RecvStream) -> Result<u64> {
    let mut chunks = vec![Bytes::new(); 64];
    let mut total = 0;
    while let Some(count) = receive.read_chunks(&mut chunks).await? {
        total += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    }
    Ok(total)
}

/// The other process: serves one connection after the other, until its standard input ends.
///
/// # Errors
/// No socket, or no keys.
pub fn peer() -> Result<()> {
    // The parent's end closes its pipe, whatever way it ends.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    });
    tokio::runtime::Runtime::new()?.block_on(async {
        let endpoint = endpoint(Some(server()?))?;
        println!("{}", endpoint.local_addr()?);
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await?;
            while let Ok((send, receive)) = connection.accept_bi().await {
                answer(send, receive).await?;
            }
        }
        Ok(())
    })
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<()> {
    let mut request = [0; 9];
    receive.read_exact(&mut request).await?;
    let mut length = [0; 8];
    length.copy_from_slice(&request[1..]);
    if request[0] == 1 {
        return write(&mut send, u64::from_le_bytes(length)).await;
    }
    ensure!(drain(&mut receive).await? == u64::from_le_bytes(length), "bytes are missing");
    write(&mut send, 1).await
}

fn endpoint(server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(LARGEST_MTU)?;
    Ok(Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime))?)
}

fn transport() -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_MTU);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into());
    Arc::new(config)
}

/// AES-128-GCM alone: the fastest where processors have AES.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn server() -> Result<ServerConfig> {
    let (provider, identity) = (provider(), SecretKey::from_seed(&[1; 32]));
    let certified = certified(&identity, &provider)?;
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    Ok(config)
}

fn client() -> Result<ClientConfig> {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey(provider())))
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    Ok(config)
}
