//! Challenges: what a client can only know if it receives what is sent to its address.

use std::net::SocketAddr;

use aws_lc_rs::hmac;

use super::{
    disco::{Handshake, address_bytes},
    random::Random,
};

/// After how long a new secret is used, in nanoseconds. The one before is still accepted for as long.
pub const ROTATION: u64 = 120_000_000_000;

/// The secrets that challenges are made with: what is sent need not be remembered.
///
/// A challenge is the HMAC-SHA256 of everything it stands for: VNI, generation, the other client's key, and the
/// address it was sent to. (The reference has a keyed BLAKE2s; nobody but the server itself reads it.) It is
/// good for two to four minutes.
#[derive(Default)]
pub(super) struct Secrets {
    current: Option<Secret>,
    previous: Option<Secret>,
}

struct Secret {
    key: hmac::Key,
    made: u64,
}

impl Secrets {
    /// Returns the challenge of a handshake with a client at `source`.
    pub(super) fn challenge(
        &mut self,
        handshake: &Handshake,
        source: SocketAddr,
        random: &mut Random,
        now: u64,
    ) -> [u8; 32] {
        self.rotate(now);
        let secret = self.current.get_or_insert_with(|| Secret {
            key: hmac::Key::new(hmac::HMAC_SHA256, &random.bytes::<32>()),
            made: now,
        });
        let tag = hmac::sign(&secret.key, &text(handshake, source));
        let mut challenge = [0; 32];
        challenge.iter_mut().zip(tag.as_ref()).for_each(|(byte, tag)| *byte = *tag);
        challenge
    }

    /// Tells whether the challenge in an answer is one for this handshake and source.
    pub(super) fn accepts(&mut self, answer: &Handshake, source: SocketAddr, now: u64) -> bool {
        self.rotate(now);
        let text = text(answer, source);
        let secrets = [&self.current, &self.previous];
        let mut secrets = secrets.into_iter().flatten();
        secrets.any(|secret| hmac::verify(&secret.key, &text, &answer.challenge).is_ok())
    }

    fn rotate(&mut self, now: u64) {
        if self.current.as_ref().is_some_and(|secret| now.saturating_sub(secret.made) >= ROTATION) {
            self.previous = self.current.take();
        }
        let lifetime = 2 * ROTATION;
        self.previous = self.previous.take().filter(|it| now.saturating_sub(it.made) < lifetime);
    }
}

/// Returns what a challenge is made of. Fields have fixed lengths, so that no two handshakes have one text.
fn text(handshake: &Handshake, source: SocketAddr) -> [u8; 58] {
    let mut text = [0; 58];
    let fields = [
        &handshake.vni.to_be_bytes()[..],
        &handshake.generation.to_be_bytes()[..],
        &handshake.remote.as_bytes()[..],
        &address_bytes(source)[..],
    ];
    text.iter_mut().zip(fields.concat()).for_each(|(byte, field)| *byte = field);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_relay::disco::DiscoPublic;

    const NOW: u64 = 1_000_000_000_000;

    fn handshake() -> Handshake {
        let remote = DiscoPublic::from_bytes([3; 32]);
        Handshake { vni: 1, generation: 2, remote, challenge: [0; 32] }
    }

    fn source() -> SocketAddr {
        "192.0.2.1:41641".parse().unwrap()
    }

    #[test]
    fn a_challenge_stands_for_one_handshake_from_one_address() {
        let (mut secrets, mut random) = (Secrets::default(), Random::new(&[1; 32]));
        let mut answer = handshake();
        answer.challenge = secrets.challenge(&answer, source(), &mut random, NOW);
        assert!(secrets.accepts(&answer, source(), NOW + 1));
        for other in ["192.0.2.1:41642", "192.0.2.2:41641", "[2001:db8::1]:41641"] {
            assert!(!secrets.accepts(&answer, other.parse().unwrap(), NOW + 1), "{other}");
        }
        let others = [
            Handshake { vni: 2, ..answer },
            Handshake { generation: 3, ..answer },
            Handshake { remote: DiscoPublic::from_bytes([4; 32]), ..answer },
            Handshake { challenge: [0; 32], ..answer },
        ];
        for other in others {
            assert!(!secrets.accepts(&other, source(), NOW + 1), "{other:?}");
        }
    }

    #[test]
    fn a_challenge_outlives_one_rotation_and_never_four_minutes() {
        let after = |made_at: u64, waits: &[u64]| {
            let (mut secrets, mut random) = (Secrets::default(), Random::new(&[1; 32]));
            secrets.challenge(&handshake(), source(), &mut random, NOW);
            let mut answer = handshake();
            let mut now = NOW + made_at;
            answer.challenge = secrets.challenge(&answer, source(), &mut random, now);
            for wait in waits {
                now += wait;
                secrets.challenge(&handshake(), source(), &mut random, now);
            }
            secrets.accepts(&answer, source(), now)
        };
        assert!(after(0, &[ROTATION - 1]));
        assert!(after(0, &[ROTATION]), "one rotation");
        assert!(!after(0, &[ROTATION, ROTATION]), "two");
        assert!(after(ROTATION - 1, &[1, ROTATION - 1]));
        assert!(!after(0, &[2 * ROTATION]), "nobody asked in between");
        assert!(!after(ROTATION - 1, &[1, ROTATION]));
    }
}
