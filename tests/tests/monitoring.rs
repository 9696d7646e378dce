//! Every panel of the dashboard, asked of a real Prometheus that scrapes a running cluster.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use potluck::session::{Environment, Home, Meta, Progress, Session};
use potluck::vault::keyfile::Protection;
use potluck::vault::path;
use potluck_proto::invite::InviteKind;
use potluck_proto::stripe::Scheme;
use potluck_tests::dashboard::{dashboard, expand};
use potluck_tests::local::{LocalCluster, quick};
use potluck_tests::prometheus::Prometheus;

/// Longest wait for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_tells_how_the_data_fares() {
    let mut cluster = LocalCluster::start(5, &quick(), PATIENCE).await.unwrap();
    let pages: Vec<SocketAddr> = cluster.running().filter_map(|node| node.core().http).collect();
    assert_eq!(pages.len(), 5);
    let prometheus = Prometheus::start(&pages, &[]).unwrap();
    let token = cluster.invite(InviteKind::Vault).unwrap();
    let folder = Home::at(cluster.path("home")).vault("default").unwrap();
    let scheme = Some(Scheme::new(2, 2).unwrap());
    let environment = Environment::real().unwrap();
    let (session, _) = Session::create(&environment, folder, &token, Protection::Bare, scheme).await.unwrap();
    let mut writer = session.writer().await.unwrap();
    let meta = Meta { mode: 0o644, mtime_ns: 0 };
    let bytes = vec![7; 3 << 20];
    writer.put_file(path::file("a").unwrap(), meta, Cursor::new(bytes.clone()), &Progress::default()).await.unwrap();
    let committed = writer.commit().await.unwrap();
    assert!(committed.stripes > 0);

    let wait = |promql: &str, wanted: &dyn Fn(&str) -> bool| {
        let seen = prometheus.wait_for(promql, PATIENCE, |result| {
            result.first().and_then(|sample| sample["value"][1].as_str()).is_some_and(wanted)
        });
        seen.unwrap_or_else(|error| panic!("{promql}: {error:#}\n{}", prometheus.log()));
    };
    wait("sum(up{job=\"potluck\"})", &|up| up == "5");
    // The first stripes of the vault, its empty first commit among them, are whole, each counted once.
    wait("sum(potluck_stripes{state=\"whole\"})", &|whole| whole.parse::<f64>().is_ok_and(|whole| whole >= 2.0));
    for query in dashboard().unwrap() {
        let expr = expand(&query.expr, "10s");
        prometheus.query(&expr).unwrap_or_else(|error| panic!("panel {}: {error:#}", query.title));
    }
    // A node dies: the survivors see it and make the stripes whole again on the fifth.
    cluster.kill(4).await;
    wait("max(potluck_members_up)", &|up| up == "4");
    wait("sum(up{job=\"potluck\"})", &|up| up == "4");
    wait("sum(potluck_stripes{state=~\"degraded|at_risk|unreadable\"})", &|bad| bad == "0");
    session.close().await;
}
