//! What happens to a region, by chance.

use crate::{
    links::{LinkNumber, Side},
    schedule::{MILLISECOND, SECOND},
    world::World,
};

/// How long a way is stalled at the most, and an unnoticed client known.
const LONGEST_STALL: u64 = 5 * SECOND;
const LONGEST_UNNOTICED: u64 = 3 * SECOND;
const DIALS_WITHIN: u64 = 80 * MILLISECOND;

impl World {
    /// One thing that happens to the region.
    pub(crate) fn change(&mut self) {
        let server = self.random.below(self.servers.len());
        let client = self.random.below(self.clients.len());
        match self.random.below(100) {
            0..=1 => {
                let keeps_key = self.random.once_in(2);
                self.crash(server, keeps_key);
            }
            2..=6 => self.restart(server, DIALS_WITHIN),
            7..=10 => {
                if let Some(link) = self.open_link() {
                    self.cut(link);
                }
            }
            11..=13 => {
                let until = self.now() + self.random.next() % LONGEST_STALL;
                let side = if self.random.once_in(2) { Side::Dialler } else { Side::Acceptor };
                if let Some(link) = self.open_link() {
                    self.links[link as usize].way(side).stalled_until = until;
                }
            }
            14..=16 => {
                let step = self.random.below(2 * 3600 * SECOND as usize) as i64;
                self.servers[server].clock_offset = step - 3600 * SECOND as i64;
            }
            17 => self.servers[server].listed = false,
            18..=20 => self.list(server),
            // It moves.
            21..=32 => {
                self.disconnect(client);
                self.connect(client, server);
            }
            // It moves, and its old server does not notice at once.
            33..=38 => {
                self.vanish(client, LONGEST_UNNOTICED);
                self.connect(client, server);
            }
            // It flaps.
            39..=41 => {
                for _ in 0..=self.random.below(5) {
                    self.connect(client, server);
                    self.run_for(MILLISECOND);
                    self.disconnect(client);
                }
                self.connect(client, server);
            }
            // Somebody else has its key.
            42..=44 => self.connect(client, server),
            45..=50 => self.disconnect(client),
            51..=54 => {
                let home = self.random.once_in(2);
                self.note_preferred(client, home);
            }
            _ => {
                for _ in 0..=self.random.below(20) {
                    let to = self.random.below(self.clients.len());
                    let session = self.random.below(2);
                    self.send_packet(client, session, to as u32);
                }
            }
        }
    }

    /// The region's name leads to a server again, and all others find it there.
    pub(crate) fn list(&mut self, server: usize) {
        if !std::mem::replace(&mut self.servers[server].listed, true) {
            self.everybody_dials(server as u32, DIALS_WITHIN);
        }
    }

    fn open_link(&mut self) -> Option<LinkNumber> {
        let open: Vec<_> = (0..self.links.len()).filter(|&link| self.links[link].open).collect();
        if open.is_empty() {
            return None;
        }
        Some(open[self.random.below(open.len())] as LinkNumber)
    }
}
