//! Every way in which a login can be decided, as one closed list. Without I/O.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the verdicts with the labels under which they are counted.
macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $source:literal, $admitted:literal, $reason:literal;)*) => {
        /// How a login was decided, by whom and why.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Verdict {
            $($(#[$doc])* $name,)*
        }

        impl Verdict {
            /// Every verdict, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Who decided; a metric label.
            pub fn source(self) -> &'static str {
                match self { $(Self::$name => $source,)* }
            }

            /// Whether the client may stay.
            pub fn is_admitted(self) -> bool {
                match self { $(Self::$name => $admitted,)* }
            }

            /// Why; a metric label.
            pub fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }
        }
    };
}

verdicts! {
    /// Nothing decides: the relay takes everybody.
    Open = "none", true, "open";
    /// The client proved the mesh key; nobody else is asked.
    MeshKey = "mesh", true, "mesh_key";
    /// The file or directory of `-allow-keys` has the key.
    ListedInFile = "allow_keys", true, "listed";
    /// The control server of `-allow-from-api` has the key.
    ListedByApi = "allow_api", true, "listed";
    /// No allow list has the key, and nobody else decides.
    NotListed = "allow_lists", false, "not_listed";
    /// No other list has the key, and that of the control server has never come or is too old.
    ListMissing = "allow_api", false, "no_list";
    /// The local tailscaled knows the node.
    Known = "tailscaled", true, "known";
    /// The local tailscaled does not know the node.
    Unknown = "tailscaled", false, "unknown";
    /// The local tailscaled does not understand the question.
    TooOld = "tailscaled", false, "too_old";
    /// The local tailscaled answered something else.
    TailscaledAnswer = "tailscaled", false, "bad_answer";
    /// The local tailscaled cannot be asked, or does not answer in time.
    TailscaledUnreachable = "tailscaled", false, "unreachable";
    /// The admission URL allowed the client.
    Allowed = "url", true, "allowed";
    /// The admission URL did not allow the client.
    Denied = "url", false, "denied";
    /// The admission URL answered something else.
    UrlAnswer = "url", false, "bad_answer";
    /// The admission URL cannot be asked, and clients are refused then.
    UrlUnreachable = "url", false, "unreachable";
    /// The admission URL cannot be asked, and clients are admitted then.
    FailOpen = "url", true, "fail_open";
}

impl Verdict {
    /// Whether the answer says something about the client, rather than about the one who was asked:
    /// only such answers may be remembered.
    pub(super) fn is_answer(self) -> bool {
        matches!(self, Self::Known | Self::Unknown | Self::Allowed | Self::Denied)
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// How often each verdict was given.
#[derive(Debug)]
pub(super) struct Tally([AtomicU64; Verdict::ALL.len()]);

impl Default for Tally {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Tally {
    pub(super) fn count(&self, verdict: Verdict) {
        if let Some(counter) = self.0.get(verdict.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every verdict with its count.
    pub(super) fn read(&self) -> Vec<(Verdict, u64)> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        Verdict::ALL.iter().copied().zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_tell_every_verdict_apart() {
        let labels: HashSet<_> = Verdict::ALL
            .iter()
            .map(|verdict| (verdict.source(), verdict.is_admitted(), verdict.reason()))
            .collect();
        assert_eq!(labels.len(), Verdict::ALL.len());
    }

    #[test]
    fn each_verdict_has_its_own_count() {
        let tally = Tally::default();
        for (index, &verdict) in Verdict::ALL.iter().enumerate() {
            (0..index).for_each(|_| tally.count(verdict));
        }
        let counts: Vec<u64> = tally.read().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, (0..Verdict::ALL.len() as u64).collect::<Vec<_>>());
    }
}
