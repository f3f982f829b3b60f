//! The key of the mesh, which may be replaced while the server runs.

use parking_lot::RwLock;

use crate::proto::keys::MeshKey;

/// The mesh key as it is now, if there is one.
#[derive(Debug, Default)]
pub struct MeshSecret(RwLock<Option<MeshKey>>);

impl MeshSecret {
    /// A secret that begins as `key`.
    pub fn new(key: Option<MeshKey>) -> Self {
        Self(RwLock::new(key))
    }

    /// The key of this moment.
    pub fn current(&self) -> Option<MeshKey> {
        self.0.read().clone()
    }

    /// Whether there is a key, and a client has shown it.
    pub fn is_shown_by(&self, shown: Option<&MeshKey>) -> bool {
        let key = self.0.read();
        key.is_some() && key.as_ref() == shown
    }

    /// Uses another key from now on; whether it differs. Whoever has proven the old one stays trusted.
    pub fn replace(&self, key: Option<MeshKey>) -> bool {
        let mut current = self.0.write();
        let differs = *current != key;
        *current = key;
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_key_nobody_shows_it() {
        let key: MeshKey = "ab".repeat(32).parse().unwrap();
        let secret = MeshSecret::default();
        assert!(!secret.is_shown_by(None));
        assert!(!secret.is_shown_by(Some(&key)));
        assert!(secret.replace(Some(key.clone())));
        assert!(!secret.replace(Some(key.clone())));
        assert!(secret.is_shown_by(Some(&key)));
        assert!(!secret.is_shown_by(None));
        assert!(!secret.is_shown_by(Some(&"cd".repeat(32).parse().unwrap())));
    }
}
