//! Readiness of sockets, with a time limit finer than a millisecond.

use std::{net::TcpStream, os::fd::AsFd, time::Duration};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use crate::tools::bench::BenchError;

/// Most events of one wait.
const EVENTS: usize = 256;
/// What events of the timer carry instead of the number of a socket.
const TIMER: u64 = u64::MAX;

/// An epoll set with a timer in it.
pub(super) struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    events: Vec<EpollEvent>,
}

/// What may be done with a socket now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    /// The number that it was added under.
    pub(super) number: usize,
    /// It can be read from, or has ended.
    pub(super) readable: bool,
    /// It can be written to.
    pub(super) writable: bool,
}

impl Poller {
    pub(super) fn new() -> Result<Self, BenchError> {
        let fault = BenchError::system("cannot wait for sockets");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(&fault)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(&fault)?;
        // Edge-triggered, so that it need not be read when it has gone off.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER);
        epoll.add(&timer, event).map_err(&fault)?;
        Ok(Self { epoll, timer, events: vec![EpollEvent::empty(); EVENTS] })
    }

    /// Watches a socket for data.
    pub(super) fn add(&self, socket: &TcpStream, number: usize) -> Result<(), BenchError> {
        self.epoll
            .add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))
            .map_err(BenchError::system("cannot watch a socket"))
    }

    /// Watches a socket for room to write too, or no longer.
    pub(super) fn set_writing(
        &self,
        socket: &TcpStream,
        number: usize,
        writing: bool,
    ) -> Result<(), BenchError> {
        let room = if writing { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, number as u64);
        self.epoll.modify(socket, &mut event).map_err(BenchError::system("cannot watch a socket"))
    }

    /// Watches a socket no more.
    pub(super) fn remove(&self, socket: &TcpStream) {
        // A socket that never was in the set is not in it now either.
        let _ = self.epoll.delete(socket.as_fd());
    }

    /// Waits until something is ready, but no longer than `limit`.
    pub(super) fn wait(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut(Ready),
    ) -> Result<(), BenchError> {
        let fault = BenchError::system("cannot wait for sockets");
        let timeout = if limit.is_zero() {
            EpollTimeout::ZERO
        } else {
            let expiration = Expiration::OneShot(TimeSpec::from_duration(limit));
            self.timer.set(expiration, TimerSetTimeFlags::empty()).map_err(&fault)?;
            EpollTimeout::NONE
        };
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(fault(error)),
        };
        for event in self.events.iter().take(count) {
            let Ok(number) = usize::try_from(event.data()) else { continue };
            if event.data() == TIMER {
                continue;
            }
            let flags = event.events();
            let over = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            ready(Ready {
                number,
                readable: over || flags.contains(EpollFlags::EPOLLIN),
                writable: over || flags.contains(EpollFlags::EPOLLOUT),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_ends_by_its_limit_again_and_again() {
        let mut poller = Poller::new().unwrap();
        for _ in 0..3 {
            let began = Instant::now();
            poller.wait(Duration::from_micros(300), |ready| panic!("{ready:?}")).unwrap();
            assert!(began.elapsed() >= Duration::from_micros(300));
        }
        poller.wait(Duration::ZERO, |ready| panic!("{ready:?}")).unwrap();
    }
}
