//! The page over real loopback sockets.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Sample {
    health: Result<(), String>,
}

impl Page for Sample {
    fn metrics(&self) -> String {
        "potluck_shards 7\n".into()
    }

    fn health(&self) -> Result<(), String> {
        self.health.clone()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "shards": 7 })
    }
}

struct Served {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

async fn served(health: Result<(), String>, lifetime: Duration) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let until = async move {
        let _ = stopped.await;
    };
    let task = tokio::spawn(serve_within(listener, Arc::new(Sample { health }), until, lifetime));
    Served { address, stop, task }
}

/// Sends `request` and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get_path(address: SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n")).await
}

#[tokio::test]
async fn pages() {
    let served = served(Ok(()), PATIENCE).await;
    let metrics = get_path(served.address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\npotluck_shards 7\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4") && metrics.contains("connection: close"));
    assert!(get_path(served.address, "/healthz").await.ends_with("\r\n\r\nok\n"));
    let status = get_path(served.address, "/api/v1/status").await;
    assert!(status.contains("application/json") && status.ends_with("{\"shards\":7}"), "{status}");
    assert!(get_path(served.address, "/").await.starts_with("HTTP/1.1 404"));
    let post = exchange(served.address, "POST /metrics HTTP/1.1\r\nhost: n\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    assert!(exchange(served.address, "\0\u{1}\u{2}nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));

    served.stop.send(()).unwrap();
    timeout(PATIENCE, served.task).await.expect("it stops").unwrap().unwrap();
}

#[tokio::test]
async fn an_ill_node_says_why() {
    let served = served(Err("the disk is read-only".into()), PATIENCE).await;
    let health = get_path(served.address, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 503") && health.ends_with("the disk is read-only\n"), "{health}");
}

#[tokio::test]
async fn callers_who_dawdle_are_cut_off_and_others_are_served() {
    let served = served(Ok(()), Duration::from_secs(1)).await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTION_LIMIT {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhos").await.unwrap();
        idle.push(stream);
    }
    // All permits are taken until the deadline frees them.
    assert!(get_path(served.address, "/healthz").await.ends_with("ok\n"));
    for mut stream in idle {
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is cut off");
        assert!(end.is_err() || !rest.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn stopping_does_not_wait_for_callers_who_dawdle() {
    let served = served(Ok(()), Duration::from_secs(1)).await;
    let mut dawdler = TcpStream::connect(served.address).await.unwrap();
    dawdler.write_all(b"GET /").await.unwrap();
    assert!(get_path(served.address, "/healthz").await.ends_with("ok\n"));
    served.stop.send(()).unwrap();
    timeout(PATIENCE, served.task).await.expect("it stops").unwrap().unwrap();
}
