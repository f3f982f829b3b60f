//! The life of a session on its worker: turns to read and to write, deadlines, moving to another
//! worker, the end.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use super::{
    connection::Connection,
    session::{End, Rest, Session},
    wait::{Event, arm, poll_event, watch},
    worker::{Message, Worker},
};
use crate::proto::message;

/// A mesh peer's writes may take this long: it is a server, and its loss concerns many.
const MESH_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How a session leaves its worker.
enum Exit {
    Ended(End),
    /// It goes on with another worker.
    Moves(usize),
}

/// Runs a registered session until it ends or moves to another worker. If this is dropped, even before
/// it has begun, the session has ended.
pub(super) fn run(mut session: Session, worker: Rc<Worker>) -> impl Future<Output = ()> {
    let departure = Departure {
        connection: Arc::clone(&session.connection),
        worker: Rc::clone(&worker),
        moved: false,
    };
    async move {
        // As a whole: the block would take just the flag along.
        let mut departure = departure;
        match serve(&mut session, &worker).await {
            Exit::Ended(end) => {
                if matches!(end, End::WriteTimeout) {
                    worker.counters().write_timeouts.increment();
                }
                let Connection { remote, key, .. } = &*session.connection;
                tracing::debug!("derp client {remote}{}: {end}", key.short());
            }
            // A worker that has stopped takes nobody in; then this server stops, and the session ends.
            Exit::Moves(place) => {
                departure.moved = worker.send(place, Message::Session(Box::new(session)));
            }
        }
    }
}

/// Takes a session that nobody runs out of the relay.
pub(super) fn abandon(session: Session, worker: Rc<Worker>) {
    drop(Departure { connection: session.connection, worker, moved: false });
}

/// Takes a connection out of the relay when its session ends, however it ends: also when the server
/// stops, or when a bug makes the session panic.
struct Departure {
    connection: Arc<Connection>,
    worker: Rc<Worker>,
    moved: bool,
}

impl Drop for Departure {
    fn drop(&mut self) {
        let Self { connection, worker, moved } = self;
        if !*moved {
            worker.hub().unregister(connection.id, worker.counters());
            connection.end(&mut worker.scratch().write, worker.counters());
        }
    }
}

async fn serve(session: &mut Session, worker: &Worker) -> Exit {
    let connection = Arc::clone(&session.connection);
    let socket = match watch(Arc::clone(&connection)) {
        Ok(socket) => socket,
        Err(error) => return Exit::Ended(error.into()),
    };
    let write_timeout =
        if session.trusted { Some(MESH_WRITE_TIMEOUT) } else { worker.settings().write_timeout };
    let mut timer = pin!(sleep_until(session.keep_alive_at.into()));

    connection.flush(&mut worker.scratch().write, worker.counters());
    if let Err(end) = session.handle_early(worker) {
        return Exit::Ended(end);
    }
    loop {
        let deadline = connection.stalled_since().and_then(|since| Some(since + write_timeout?));
        let keep_alive_at = session.keep_alive_at;
        let throttled_until = session.throttled_until();
        let times = [deadline, throttled_until].into_iter().flatten();
        arm(timer.as_mut(), times.fold(keep_alive_at, Instant::min));
        let reads = throttled_until.is_none();
        let event =
            poll_fn(|context| poll_event(&connection, &socket, timer.as_mut(), reads, context));
        let event = match event.await {
            Ok(event) => event,
            Err(error) => return Exit::Ended(error.into()),
        };
        if connection.is_closing() {
            return Exit::Ended(End::Asked);
        }
        match event {
            Event::Readable(mut ready) => {
                if let Some(place) = worker.other_home(connection.id) {
                    return Exit::Moves(place);
                }
                match session.read_quantum(worker) {
                    // A read that does not fill the quantum has emptied the socket: to find that out
                    // by another one would cost a system call.
                    Ok(Rest::Empty) => ready.clear_ready(),
                    // To the back of the worker's queue: everybody else has a turn first.
                    Ok(Rest::More) => tokio::task::yield_now().await,
                    Err(end) => return Exit::Ended(end),
                }
            }
            Event::Writable(mut ready) => {
                connection.flush(&mut worker.scratch().write, worker.counters());
                if connection.is_blocked() {
                    ready.clear_ready();
                } else if session.tells_more {
                    session.tells_more = worker.hub().watch_more(connection.id, worker.counters());
                }
            }
            Event::Attention => {
                connection.flush(&mut worker.scratch().write, worker.counters());
                if session.tells_more && !connection.is_blocked() {
                    session.tells_more = worker.hub().watch_more(connection.id, worker.counters());
                    tokio::task::yield_now().await;
                }
            }
            Event::Time => {
                let now = Instant::now();
                let stalled_since = connection.stalled_since();
                let overdue = stalled_since.zip(write_timeout);
                if overdue.is_some_and(|(since, allowed)| now >= since + allowed) {
                    return Exit::Ended(End::WriteTimeout);
                }
                if now >= session.keep_alive_at {
                    session.keep_alive_at += session.keep_alive_period;
                    connection.post(message::keep_alive);
                }
                if throttled_until.is_some()
                    && let Err(end) = session.resume(worker)
                {
                    return Exit::Ended(end);
                }
            }
        }
    }
}
