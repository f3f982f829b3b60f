//! Opening a TCP connection to a host with several addresses (RFC 8305).

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{sleep, timeout};

/// How long an attempt has before the next one begins beside it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// Longest that one address is tried.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to whichever address answers first. Attempts begin in the order of `addresses`, the families
/// in turn; none waits for an earlier one to fail for longer than a moment.
///
/// # Errors
///
/// If none answers: the address whose attempt ended last, with its error.
pub(super) async fn race<T, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Option<(SocketAddr, io::Error)>>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = in_turns(addresses).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut fault = None;
    loop {
        match waiting.next() {
            Some(address) => {
                let attempt = timeout(ADDRESS_TIMEOUT, connect(address));
                attempts.push(async move { (address, attempt.await) });
            }
            None if attempts.is_empty() => return Err(fault),
            None => {}
        }
        tokio::select! {
            Some((address, ended)) = attempts.next() => match ended {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => fault = Some((address, error)),
                Err(_) => fault = Some((address, io::ErrorKind::TimedOut.into())),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

/// The addresses with the families in turn, beginning with the first one's.
fn in_turns(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let begins_with_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let of = |ipv6: bool| addresses.iter().copied().filter(move |it| it.is_ipv6() == ipv6);
    let (mut first, mut second) = (of(begins_with_ipv6), of(!begins_with_ipv6));
    let mut ordered = Vec::with_capacity(addresses.len());
    loop {
        let pair = (first.next(), second.next());
        if pair == (None, None) {
            return ordered;
        }
        ordered.extend(pair.0);
        ordered.extend(pair.1);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending, time::Instant};

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns() {
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "[::4]:1"]);
        let ordered = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1", "[::4]:1"]);
        assert_eq!(in_turns(&given), ordered);
        assert!(in_turns(&[]).is_empty());
    }

    #[tokio::test]
    async fn a_silent_family_costs_a_moment() {
        let begun = Instant::now();
        let given = addresses(&["[::1]:1", "[::2]:1", "1.1.1.1:1"]);
        let won = race(&given, |address| async move {
            if address.is_ipv6() { pending().await } else { Ok(address) }
        });
        assert_eq!(won.await.unwrap(), given[2]);
        assert!((HEAD_START..ADDRESS_TIMEOUT).contains(&begun.elapsed()));
    }

    #[tokio::test]
    async fn a_refusal_does_not_wait_and_the_first_to_answer_wins() {
        let tried = RefCell::new(Vec::new());
        let given = addresses(&["1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3"]);
        let begun = Instant::now();
        let won = race(&given, |address| {
            tried.borrow_mut().push((address, begun.elapsed() >= HEAD_START));
            async move {
                match address.port() {
                    1 => Err(io::ErrorKind::ConnectionRefused.into()),
                    2 => pending().await,
                    _ => Ok(address),
                }
            }
        });
        assert_eq!(won.await.unwrap(), given[2]);
        assert_eq!(*tried.borrow(), [(given[0], false), (given[1], false), (given[2], true)]);
    }

    #[tokio::test]
    async fn when_nobody_answers_the_last_error_is_told() {
        let given = addresses(&["1.1.1.1:1", "2.2.2.2:2"]);
        let refuse = |_| async { Err::<(), _>(io::ErrorKind::ConnectionRefused.into()) };
        let (address, error) = race(&given, refuse).await.unwrap_err().unwrap();
        assert_eq!((address, error.kind()), (given[1], io::ErrorKind::ConnectionRefused));
        assert!(race(&[], refuse).await.unwrap_err().is_none());
    }
}
