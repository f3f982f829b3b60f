//! One thread of a load.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    mem, thread,
    time::{Duration, Instant},
};

use super::{
    DRAIN, Schedule, Tallies,
    peer::{Over, Peer, Turn},
    timer::{Poller, Ready},
};
use crate::tools::bench::{BenchError, Stop};

/// Paced senders sleep at least this long, so that a high rate does not wake the thread for every packet.
/// Where all are paced and no packet is stamped, receivers sleep as long.
const GRANULARITY: Duration = Duration::from_micros(500);
/// Most rounds of reading in a row.
const ROUNDS: usize = 16;
/// Longest sleep, so that a request to end is seen.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// Drives `peers` until packets have been sent for the scheduled time and some more for stragglers.
/// Returns what they came to, and those that are still connected.
pub(super) fn run(
    peers: Vec<Peer>,
    schedule: Schedule,
    stop: &Stop,
) -> Result<(Tallies, Vec<Peer>), BenchError> {
    let mut worker = Worker::new(peers, schedule)?;
    while !stop.is_set() && worker.elapsed() < schedule.duration {
        worker.send_due(worker.elapsed())?;
        worker.send_freely()?;
        worker.wait(schedule.duration)?;
    }
    if !stop.is_set() {
        // Those that became due while the thread was waking up for the last time.
        worker.send_due(schedule.duration.saturating_sub(Duration::from_nanos(1)))?;
    }
    worker.stop_sending();
    let end = worker.elapsed() + DRAIN;
    while worker.elapsed() < end {
        worker.wait(end)?;
    }
    Ok(worker.finish())
}

struct Worker {
    schedule: Schedule,
    poller: Poller,
    peers: Vec<Option<Peer>>,
    tallies: Tallies,
    /// Paced senders whose sockets have room, by when their next packet is due.
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    /// Senders without a pace whose sockets have room.
    free: VecDeque<usize>,
    /// When paced senders were last looked at.
    last_turn: Duration,
    /// Data must be read when it comes: delays are measured here, or a receiver that naps would keep
    /// its TCP window shut and decide how much is delivered.
    prompt: bool,
    sending: bool,
    scratch: Vec<u8>,
    ready: Vec<Ready>,
}

impl Worker {
    fn new(peers: Vec<Peer>, schedule: Schedule) -> Result<Self, BenchError> {
        let poller = Poller::new()?;
        for (number, peer) in peers.iter().enumerate() {
            if peer.reads() {
                poller.add(peer.socket(), number)?;
            }
        }
        let prompt = !schedule.paced || peers.iter().any(Peer::is_prompt);
        let mut worker = Self {
            schedule,
            prompt,
            poller,
            peers: peers.into_iter().map(Some).collect(),
            tallies: Tallies::default(),
            due: BinaryHeap::new(),
            free: VecDeque::new(),
            last_turn: Duration::ZERO,
            sending: true,
            scratch: Vec::new(),
            ready: Vec::new(),
        };
        (0..worker.peers.len()).for_each(|number| worker.enlist(number));
        Ok(worker)
    }

    /// Time since packets may be sent.
    fn elapsed(&self) -> Duration {
        self.schedule.begin.elapsed()
    }

    /// Lets a sender whose socket has room wait for its next turn.
    fn enlist(&mut self, number: usize) {
        let Some(Some(peer)) = self.peers.get(number) else { return };
        match peer.sending().map(|sending| sending.due()) {
            Some(Some(due)) => self.due.push(Reverse((due, number))),
            Some(None) => self.free.push_back(number),
            None => {}
        }
    }

    /// One turn for every paced sender that has a packet due at `now`.
    fn send_due(&mut self, now: Duration) -> Result<(), BenchError> {
        let mut turns = Vec::new();
        while let Some(&Reverse((due, number))) = self.due.peek()
            && due <= now
        {
            self.due.pop();
            turns.push(number);
        }
        if !turns.is_empty() {
            self.last_turn = now;
        }
        turns.into_iter().try_for_each(|number| self.turn(number, now))
    }

    /// One turn for every sender without a pace.
    fn send_freely(&mut self) -> Result<(), BenchError> {
        if self.schedule.begin > Instant::now() {
            return Ok(());
        }
        mem::take(&mut self.free)
            .into_iter()
            .try_for_each(|number| self.turn(number, Duration::ZERO))
    }

    fn turn(&mut self, number: usize, now: Duration) -> Result<(), BenchError> {
        let begin = self.schedule.begin;
        self.act(number, |peer, tallies, _| peer.send(begin, now, tallies.of(peer.group())))
    }

    /// Does something with a connection, and arranges what follows from it.
    fn act(
        &mut self,
        number: usize,
        action: impl FnOnce(&mut Peer, &mut Tallies, &mut Vec<u8>) -> Result<Turn, Over>,
    ) -> Result<(), BenchError> {
        let Some(Some(peer)) = self.peers.get_mut(number) else { return Ok(()) };
        match action(peer, &mut self.tallies, &mut self.scratch) {
            Ok(Turn::Done) => self.enlist(number),
            Ok(Turn::Full) => self.poller.set_writing(peer.socket(), number, true)?,
            Err(Over) => self.leave(number),
        }
        Ok(())
    }

    /// Waits for sockets and for the next packet that is due, no longer than until `end`.
    fn wait(&mut self, end: Duration) -> Result<(), BenchError> {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.schedule.begin);
        let lead = self.schedule.begin.saturating_duration_since(now);
        let mut limit = LONGEST_SLEEP.min(lead + end.saturating_sub(elapsed));
        if self.sending {
            if !self.free.is_empty() {
                limit = lead.min(limit);
            }
            if let Some(Reverse((due, _))) = self.due.peek() {
                let wake = (*due).max(self.last_turn + GRANULARITY);
                limit = limit.min(lead + wake.saturating_sub(elapsed));
            }
        }
        let nap = limit.min(GRANULARITY);
        if self.prompt || nap.is_zero() || !(self.sending && self.free.is_empty()) {
            return self.poll(limit).map(drop);
        }
        // To be woken for every packet would cost more than the packet.
        thread::sleep(nap);
        for _ in 0..ROUNDS {
            if !self.poll(Duration::ZERO)? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for sockets and serves those that are ready. Whether there may be more to read at once.
    fn poll(&mut self, limit: Duration) -> Result<bool, BenchError> {
        let mut ready = mem::take(&mut self.ready);
        self.poller.wait(limit, |one| ready.push(one))?;
        let mut more = false;
        for one in ready.drain(..) {
            more |= self.serve(one)?;
        }
        self.ready = ready;
        Ok(more)
    }

    /// Serves a socket. Whether there may be more to read.
    fn serve(&mut self, ready: Ready) -> Result<bool, BenchError> {
        let Ready { number, readable, writable } = ready;
        let mut more = false;
        if writable && let Some(Some(peer)) = self.peers.get_mut(number) {
            match peer.flush(self.tallies.of(peer.group())) {
                Ok(Turn::Done) => {
                    self.poller.set_writing(peer.socket(), number, false)?;
                    self.enlist(number);
                }
                Ok(Turn::Full) => {}
                Err(Over) => self.leave(number),
            }
        }
        if readable && let Some(Some(peer)) = self.peers.get_mut(number) {
            let began = self.schedule.begin;
            match peer.receive(&mut self.scratch, began, &mut self.tallies) {
                Ok((Turn::Done, full)) => more = full,
                Ok((Turn::Full, _)) => self.poller.set_writing(peer.socket(), number, true)?,
                Err(Over) => self.leave(number),
            }
        }
        Ok(more)
    }

    /// Forgets a connection that has ended.
    fn leave(&mut self, number: usize) {
        if let Some(peer) = self.peers.get_mut(number).and_then(Option::take) {
            let tally = self.tallies.of(peer.group());
            peer.count_partial(tally);
            tally.disconnected += 1;
            self.poller.remove(peer.socket());
        }
    }

    fn stop_sending(&mut self) {
        self.sending = false;
        self.due.clear();
        self.free.clear();
    }

    fn finish(mut self) -> (Tallies, Vec<Peer>) {
        let peers: Vec<_> = self.peers.into_iter().flatten().collect();
        for peer in &peers {
            peer.count_partial(self.tallies.of(peer.group()));
        }
        (self.tallies, peers)
    }
}
