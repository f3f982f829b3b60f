//! How a node is registered: with which keys, and what the answer means. Without I/O.

use super::{Identity, TailnetError, error::shown, response::RegisterResponse};

/// With which keys a node asks to be registered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attempt {
    /// With the node key alone, which the server should know: an auth key may be used up by now.
    Known,
    /// With an auth key.
    WithAuthKey,
    /// With a new node key in the place of the expired one, and an auth key.
    Renewed,
}

/// What is to be done after an answer.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The node is registered. It may still wait for an administrator.
    Registered,
    /// Ask again like this.
    Again(Attempt),
    /// It is not registered.
    Failed(TailnetError),
}

impl Attempt {
    /// Returns how to begin. `is_expired`: the server has said that the node key has expired.
    pub(super) fn first(identity: &Identity, server: &str, is_expired: bool) -> Self {
        if identity.registered_with.as_deref() != Some(server) {
            Self::WithAuthKey
        } else if is_expired {
            Self::Renewed
        } else {
            Self::Known
        }
    }

    /// Returns what an answer means.
    pub(super) fn judge(self, answer: RegisterResponse) -> Verdict {
        let refused = if !answer.error.is_empty() {
            Some(TailnetError::Refused(shown(&answer.error)))
        } else if !answer.auth_url.is_empty() {
            Some(TailnetError::Login(shown(&answer.auth_url)))
        } else {
            None
        };
        match (self, refused) {
            // A person need not log in where another key is to be used anyway.
            (Self::Known | Self::WithAuthKey, None | Some(TailnetError::Login(_)))
                if answer.node_key_expired =>
            {
                Verdict::Again(Self::Renewed)
            }
            (Self::Known, Some(_)) => Verdict::Again(Self::WithAuthKey),
            (Self::WithAuthKey | Self::Renewed, Some(error)) => Verdict::Failed(error),
            (Self::Renewed, None) if answer.node_key_expired => {
                Verdict::Failed(TailnetError::StillExpired)
            }
            (Self::Known | Self::WithAuthKey | Self::Renewed, None) => Verdict::Registered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::keys::NodePrivate, tailnet::MachinePrivate};

    fn identity(registered_with: Option<&str>) -> Identity {
        Identity {
            machine: MachinePrivate::from_random([1; 32]),
            node: NodePrivate::from_random([2; 32]),
            next_node: None,
            registered_with: registered_with.map(str::to_owned),
        }
    }

    fn answer(error: &str, url: &str, node_key_expired: bool) -> RegisterResponse {
        RegisterResponse {
            node_key_expired,
            machine_authorized: true,
            auth_url: url.to_owned(),
            error: error.to_owned(),
        }
    }

    #[test]
    fn the_auth_key_is_used_only_where_the_server_does_not_know_the_node() {
        let server = "https://control.example";
        let first = |registered_with, is_expired| {
            Attempt::first(&identity(registered_with), server, is_expired)
        };
        assert_eq!(first(None, false), Attempt::WithAuthKey);
        assert_eq!(first(Some("https://other.example"), true), Attempt::WithAuthKey);
        assert_eq!(first(Some(server), false), Attempt::Known);
        assert_eq!(first(Some(server), true), Attempt::Renewed);
    }

    #[test]
    fn answers_lead_to_the_next_attempt_or_an_end() {
        use Attempt::{Known, Renewed, WithAuthKey};
        let url = "https://control.example/a/1";
        for (attempt, answer, expected) in [
            (Known, answer("", "", false), "Registered"),
            (Known, answer("no", "", false), "Again(WithAuthKey)"),
            (Known, answer("", url, false), "Again(WithAuthKey)"),
            (Known, answer("", "", true), "Again(Renewed)"),
            (Known, answer("", url, true), "Again(Renewed)"),
            (WithAuthKey, answer("", "", false), "Registered"),
            (WithAuthKey, answer("no", "", true), "Failed(Refused(\"no\"))"),
            (WithAuthKey, answer("", url, false), "Failed(Login(\"https://control.example/a/1\"))"),
            (WithAuthKey, answer("", "", true), "Again(Renewed)"),
            (Renewed, answer("", "", false), "Registered"),
            (Renewed, answer("no", "", false), "Failed(Refused(\"no\"))"),
            (Renewed, answer("", url, true), "Failed(Login(\"https://control.example/a/1\"))"),
            (Renewed, answer("", "", true), "Failed(StillExpired)"),
        ] {
            let said = format!("{answer:?}");
            assert_eq!(format!("{:?}", attempt.judge(answer)), expected, "{attempt:?} {said}");
        }
    }

    /// A server could fill the log, or write lines of its own into it.
    #[test]
    fn regression_the_words_of_a_server_are_short_and_quoted() {
        let long = format!("\n\u{1b}[2J{}", "x".repeat(1 << 20));
        for answer in [answer(&long, "", false), answer("", &long, false)] {
            let Verdict::Failed(error) = Attempt::WithAuthKey.judge(answer) else {
                panic!("it is refused");
            };
            let text = error.to_string();
            assert!(text.len() < 500 && !text.contains(['\n', '\u{1b}']), "{text}");
        }
    }

    /// Whatever a server answers, there are at most three attempts.
    #[test]
    fn attempts_come_to_an_end() {
        for error in ["", "no"] {
            for url in ["", "https://control.example/a/1"] {
                for is_expired in [false, true] {
                    let mut attempt = Attempt::Known;
                    let mut count = 1;
                    while let Verdict::Again(next) = attempt.judge(answer(error, url, is_expired)) {
                        (attempt, count) = (next, count + 1);
                        assert!(count <= 3);
                    }
                }
            }
        }
    }
}
