//! Opening many connections at once.

use std::{
    net::TcpStream,
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit};
use tokio::runtime::Runtime;

use super::{BenchError, Setting};
use crate::{
    client::{Client, ClientError, Connector, new_key, wire::Wire},
    proto::keys::NodePublic,
};

/// Connections that are being opened at any time, unless the workload says otherwise.
pub(super) const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// Open files that are no connections.
const OTHER_FILES: u64 = 64;

/// A connection that is logged in, apart from any runtime.
pub(super) struct Connection {
    pub(super) key: NodePublic,
    pub(super) socket: TcpStream,
    pub(super) wire: Wire,
    /// What came after the login already.
    pub(super) received: Vec<u8>,
}

/// Looks up the server's addresses once for all connections.
pub(super) fn resolve(connector: Connector) -> Result<Connector, BenchError> {
    let runtime = runtime()?;
    let resolved = runtime.block_on(connector.resolved());
    // A resolver that hangs does not hold up the end.
    runtime.shutdown_background();
    Ok(resolved?)
}

fn runtime() -> Result<Runtime, BenchError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::system("cannot start a runtime"))
}

/// Opens `count` connections. Fewer are returned only if the end was asked for.
///
/// # Errors
///
/// The first that fails ends it.
pub(super) fn open(setting: &Setting, count: usize) -> Result<Vec<Connection>, BenchError> {
    check_file_limit(count)?;
    setting.progress.begin("connecting", count as u64);
    let host = setting.connector.target().authority();
    let opened = for_each(setting, count, CONCURRENCY, |client: Client, key, _| {
        let parts = client.into_parts();
        let parts = parts.map_err(|source| ClientError::Io { host: host.clone(), source });
        let opened =
            parts.map(|(socket, wire, received)| Connection { key, socket, wire, received });
        std::future::ready(opened)
    })?;
    opened
        .into_iter()
        .map(|(number, result)| {
            let wanted = count;
            result.map_err(|source| BenchError::Connect { number: number + 1, wanted, source })
        })
        .collect()
}

/// What connecting once came to: which one, counted from 0, and the result.
pub(super) type Attempt<T> = (usize, Result<T, ClientError>);

/// Connects `count` times, `concurrency` at a time, spread over the generator's threads, and gives
/// each connection to `then`, with its key and how long it took. No more are begun after one has failed,
/// or after the end was asked for.
///
/// # Errors
///
/// If a thread cannot be had. What becomes of the connections is in the result.
pub(super) fn for_each<T, F>(
    setting: &Setting,
    count: usize,
    concurrency: NonZeroUsize,
    then: impl Fn(Client, NodePublic, Duration) -> F + Sync,
) -> Result<Vec<Attempt<T>>, BenchError>
where
    T: Send,
    F: Future<Output = Result<T, ClientError>>,
{
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let lane = async || {
        let mut attempts = Vec::new();
        while !failed.load(Ordering::Relaxed) && !setting.stop.is_set() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let result = connect(&setting.connector, &then).await;
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            setting.progress.step();
            attempts.push((number, result));
        }
        attempts
    };
    let threads = setting.threads.get().min(concurrency.get());
    let results = thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads)
            .map(|index| {
                let spare = usize::from(index < concurrency.get() % threads);
                let lanes = concurrency.get() / threads + spare;
                let lane = &lane;
                scope.spawn(move || -> Result<Vec<Attempt<T>>, BenchError> {
                    let lanes = runtime()?.block_on(join_all((0..lanes).map(|_| lane())));
                    Ok(lanes.into_iter().flatten().collect())
                })
            })
            .collect();
        spawned
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(BenchError::Thread)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut results: Vec<_> = results.into_iter().flatten().collect();
    results.sort_by_key(|(number, _)| *number);
    Ok(results)
}

async fn connect<T, F: Future<Output = Result<T, ClientError>>>(
    connector: &Connector,
    then: impl Fn(Client, NodePublic, Duration) -> F,
) -> Result<T, ClientError> {
    let key = new_key()?;
    let began = Instant::now();
    let client = connector.connect(&key).await?;
    then(client, key.public(), began.elapsed()).await
}

/// Checks that this process may have as many connections.
pub(super) fn check_file_limit(connections: usize) -> Result<(), BenchError> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(BenchError::system("cannot read the limit of open files"))?;
    if (connections as u64).saturating_add(OTHER_FILES) > limit {
        return Err(BenchError::FileLimit { wanted: connections, limit });
    }
    Ok(())
}
