//! Another configuration, while everything runs.

use std::net::SocketAddr;

use super::{Directory, PeerId, WireGuardRelay, whereabouts::Atlas};
use crate::flow::FlowTable;

impl WireGuardRelay {
    /// Has other peers and pairs from now on. The sessions of pairs that remain go on untouched, the others end; what is
    /// known of peers that remain stays known.
    pub fn reload(&mut self, table: &mut FlowTable, directory: Directory) {
        let before = std::mem::replace(&mut self.directory, directory);
        let directory = &self.directory;
        let name = |peer: PeerId| directory.find(&before.peer(peer)?.key);
        self.pending.rename(name);
        let names = |peers: [PeerId; 2], remotes: [SocketAddr; 2]| {
            let [a, b] = peers.map(name);
            let (a, b) = (a?, b?);
            let may = directory.may_be_at(a, remotes[0]) && directory.may_be_at(b, remotes[1]);
            (may && directory.are_partners(a, b)).then_some([a, b])
        };
        for session in self.sessions.rename(names) {
            table.remove(session.flow);
        }
        let mut atlas = Atlas::new(directory);
        let mut tallies = vec![super::view::Tallies::default(); directory.len()];
        for old in before.ids() {
            let Some(new) = name(old) else { continue };
            atlas.put(new, self.atlas.take(old), directory);
            if let (Some(to), Some(from)) =
                (tallies.get_mut(new.index()), self.tallies.get_mut(old.index()))
            {
                *to = std::mem::take(from);
            }
        }
        self.atlas = atlas;
        self.tallies = tallies;
        self.allowances.follow(directory);
        self.has_changed = true;
    }
}
