//! What must be true of every region that has been left alone for a while.

use crate::{
    schedule::{MILLISECOND, SECOND},
    servers::End,
    world::World,
};

/// After so long without changes everything must have settled: stalls, vanished clients, late notice,
/// pauses and dialling, one after the other.
pub(crate) const QUIET: u64 = 15 * SECOND;

impl World {
    /// Lets everything settle and compares each server with where the clients really are.
    pub(crate) fn check_settled(&mut self) {
        for server in 0..self.servers.len() {
            self.list(server);
            self.restart(server, 80 * MILLISECOND);
        }
        self.run_for(QUIET);
        self.check_presence();
        self.check_departures();
        self.check_bounds();
        self.check_deliveries(500);
    }

    /// Every server knows the way to every client, and no other.
    pub(crate) fn check_presence(&self) {
        let others = self.servers.len() as u64 - 1;
        for (number, server) in self.servers.iter().enumerate() {
            if self.settings.checks {
                assert_eq!(server.relay.check(), Ok(()));
            }
            let census = server.relay.census();
            assert_eq!((census.links, census.watchers), (others, others), "of server {number}");
            let (mut here, mut elsewhere, mut duplicates) = (0, 0, 0);
            for (client, state) in self.clients.iter().enumerate() {
                let route = server.route(client as u32);
                if let Some(session) = state.active_at(number as u32) {
                    here += 1;
                    let id = u64::from(session.connection);
                    assert_eq!(
                        route,
                        Some((id, End::Client(client as u32))),
                        "server {number} and its own client {client}"
                    );
                    let company = state.sessions.iter().filter(|it| it.server == number as u32);
                    let company = company.count();
                    duplicates += if company > 1 { company } else { 0 };
                } else if state.sessions.is_empty() {
                    assert_eq!(route, None, "server {number} knows client {client}, who left");
                } else {
                    elsewhere += 1;
                    let Some((_, End::Link(link))) = route else {
                        panic!("server {number} has {route:?} for client {client}: {state:?}");
                    };
                    let link = &self.links[link as usize];
                    assert!(link.open && link.servers[0] == number as u32);
                    assert!(state.is_at(link.servers[1]), "server {number}, client {client}");
                }
            }
            assert_eq!(census.remote_keys, elsewhere, "of server {number}");
            // Whatever is a client of the others, servers are not kept.
            let at = |other: u32| self.clients.iter().filter(|it| it.is_at(other)).count();
            let links = server.links_to.iter().flatten();
            let links = links.map(|&link| (link, &self.links[link as usize]));
            for (link, state) in links.filter(|_| self.settings.checks) {
                let kept = server.relay.link_keys(state.names[0].into());
                assert_eq!(kept, at(state.servers[1]), "link {link} of server {number}");
            }
            assert_eq!(census.keys, here + others, "of server {number}");
            assert_eq!(census.duplicate_connections as usize, duplicates);
            assert_eq!(server.duplicates.len(), duplicates, "of server {number}");
        }
    }

    /// Everybody has been told of the senders who left.
    fn check_departures(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            for session in &client.sessions {
                assert!(!session.dead, "client {number} is still known where it left");
                for &sender in &session.expects {
                    let has_left = self.clients[sender as usize].sessions.is_empty();
                    assert!(
                        !has_left || session.told.contains(&sender),
                        "client {number} was not told that {sender} left"
                    );
                }
            }
        }
    }

    /// Nothing is left on the way.
    fn check_bounds(&self) {
        for link in self.links.iter().filter(|link| link.open) {
            assert_eq!(link.ways.map(|way| way.backlog), [0; 2]);
            assert!(link.waiting.is_empty());
        }
    }

    /// What was found out serves: a packet for everybody arrives, or for so many.
    pub(crate) fn check_deliveries(&mut self, most: usize) {
        for link in &mut self.links {
            link.pace = 0;
        }
        let connected = |client: &usize| !self.clients[*client].sessions.is_empty();
        let all: Vec<usize> = (0..self.clients.len()).filter(connected).collect();
        let Some(&sender) = all.first() else { return };
        let step = all.len().div_ceil(most);
        let (before, mut sent) = (self.tally.delivered, 0);
        for &to in all.iter().step_by(step) {
            sent += 1;
            self.send_packet(sender, 0, to as u32);
            self.run_for(MILLISECOND);
        }
        self.run_for(QUIET);
        assert_eq!(self.tally.delivered - before, sent);
    }
}
