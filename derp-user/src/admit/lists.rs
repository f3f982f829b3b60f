//! The allow lists as they stand. Without I/O: the time is an argument.

use std::time::{Duration, Instant};

use super::{Verdict, keys::Keys};
use crate::proto::keys::NodePublic;

/// Every list: a key on any of them is admitted.
#[derive(Debug, Default)]
pub(super) struct Lists {
    files: Option<Keys>,
    control: Option<ControlList>,
}

/// The list of a control server, which gets old while the server does not answer.
#[derive(Debug)]
pub(super) struct ControlList {
    /// How long an answer counts; `None`: until the next one.
    pub(super) lifetime: Option<Duration>,
    /// The last good answer.
    pub(super) answer: Option<(Keys, Instant)>,
}

/// What has changed on a list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Change {
    /// Keys that were not on it before.
    pub(super) added: usize,
    /// Keys that are on no list any more.
    pub(super) gone: Vec<NodePublic>,
}

impl Lists {
    pub(super) fn new(files: Option<Keys>, control: Option<ControlList>) -> Self {
        Self { files, control }
    }

    /// Whether there is any list.
    pub(super) fn exist(&self) -> bool {
        self.files.is_some() || self.control.is_some()
    }

    /// Who has `key`.
    ///
    /// # Errors
    ///
    /// The verdict if nobody else decides either.
    pub(super) fn find(&self, key: &NodePublic, now: Instant) -> Result<Verdict, Verdict> {
        if self.files.as_ref().is_some_and(|keys| keys.contains(key)) {
            return Ok(Verdict::ListedInFile);
        }
        match self.control.as_ref().map(|control| control.current(now)) {
            Some(Some(keys)) if keys.contains(key) => Ok(Verdict::ListedByApi),
            Some(None) => Err(Verdict::ListMissing),
            Some(Some(_)) | None => Err(Verdict::NotListed),
        }
    }

    /// Replaces the list from files.
    pub(super) fn replace_files(&mut self, keys: Keys) -> Change {
        let before = self.files.replace(Keys::clone(&keys));
        self.change(before, &keys)
    }

    /// Replaces the list of the control server.
    pub(super) fn replace_answer(&mut self, keys: Keys, now: Instant) -> Change {
        let Some(control) = &mut self.control else { return Change::default() };
        let before = control.answer.replace((Keys::clone(&keys), now));
        self.change(before.map(|(keys, _)| keys), &keys)
    }

    /// Keys in the list from files, if there is one.
    pub(super) fn keys_in_files(&self) -> Option<usize> {
        self.files.as_ref().map(|keys| keys.len())
    }

    /// Keys in the control server's list and when it came. Without one, `Some(None)` if there should
    /// be one.
    pub(super) fn keys_by_control(&self) -> Option<Option<(usize, Instant)>> {
        let control = self.control.as_ref()?;
        Some(control.answer.as_ref().map(|(keys, at)| (keys.len(), *at)))
    }

    fn change(&self, before: Option<Keys>, after: &Keys) -> Change {
        let Some(before) = before else {
            return Change { added: after.len(), gone: Vec::new() };
        };
        let kept_elsewhere = |key: &NodePublic| {
            let answer = self.control.as_ref().and_then(|control| control.answer.as_ref());
            self.files.as_ref().is_some_and(|keys| keys.contains(key))
                || answer.is_some_and(|(keys, _)| keys.contains(key))
        };
        let mut gone: Vec<_> = before.iter().filter(|key| !kept_elsewhere(key)).copied().collect();
        gone.sort_unstable();
        Change { added: after.iter().filter(|key| !before.contains(*key)).count(), gone }
    }
}

impl ControlList {
    fn current(&self, now: Instant) -> Option<&Keys> {
        let (keys, at) = self.answer.as_ref()?;
        let age = now.saturating_duration_since(*at);
        self.lifetime.is_none_or(|lifetime| age < lifetime).then_some(keys)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    fn keys(bytes: &[u8]) -> Keys {
        Arc::new(bytes.iter().map(|&byte| key(byte)).collect::<HashSet<_>>())
    }

    #[test]
    fn any_list_admits() {
        let now = Instant::now();
        let control = ControlList { lifetime: None, answer: Some((keys(&[2]), now)) };
        let lists = Lists::new(Some(keys(&[1])), Some(control));
        assert_eq!(lists.find(&key(1), now), Ok(Verdict::ListedInFile));
        assert_eq!(lists.find(&key(2), now), Ok(Verdict::ListedByApi));
        assert_eq!(lists.find(&key(3), now), Err(Verdict::NotListed));
        assert_eq!(Lists::default().find(&key(1), now), Err(Verdict::NotListed));
    }

    #[test]
    fn an_answer_counts_for_its_lifetime() {
        let start = Instant::now();
        let lifetime = Duration::from_secs(60);
        let control = ControlList { lifetime: Some(lifetime), answer: None };
        let mut lists = Lists::new(Some(keys(&[1])), Some(control));
        assert_eq!(lists.find(&key(2), start), Err(Verdict::ListMissing));
        assert_eq!(lists.find(&key(1), start), Ok(Verdict::ListedInFile));
        lists.replace_answer(keys(&[2]), start);
        let last = start + lifetime - Duration::from_nanos(1);
        assert_eq!(lists.find(&key(2), last), Ok(Verdict::ListedByApi));
        assert_eq!(lists.find(&key(3), last), Err(Verdict::NotListed));
        assert_eq!(lists.find(&key(2), start + lifetime), Err(Verdict::ListMissing));
        lists.replace_answer(keys(&[2]), start + lifetime);
        assert_eq!(lists.find(&key(2), start + lifetime), Ok(Verdict::ListedByApi));
    }

    #[test]
    fn gone_are_those_that_are_on_no_list_any_more() {
        let now = Instant::now();
        let control = ControlList { lifetime: None, answer: None };
        let mut lists = Lists::new(Some(keys(&[1, 2, 3])), Some(control));
        let first = lists.replace_answer(keys(&[2, 4]), now);
        assert_eq!(first, Change { added: 2, gone: Vec::new() });
        let files = lists.replace_files(keys(&[3, 5, 6]));
        assert_eq!(files, Change { added: 2, gone: vec![key(1)] });
        let answer = lists.replace_answer(keys(&[]), now);
        assert_eq!(answer, Change { added: 0, gone: vec![key(2), key(4)] });
        assert_eq!(lists.keys_in_files(), Some(3));
        assert_eq!(lists.keys_by_control(), Some(Some((0, now))));
    }
}
