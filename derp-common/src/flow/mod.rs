//! UDP flows the daemon has admitted: what the tables hold, and who may send what where.
//!
//! A flow has two legs. Whoever sends from one leg's remote address to its local address is forwarded to
//! the other leg's remote address, from the other leg's local address. The daemon alone writes the
//! tables; the kernel program and the userspace forwarder read them with the same functions:
//! [`class::classify`] says what a payload is, [`admit::admit`] whose it is and where it goes, and
//! [`LegCells::account`] whether it may go now.

pub mod admit;
pub mod class;
pub mod statistics;
pub mod table;

pub use self::{
    admit::{Datagram, Hop, Tables, admit, find},
    class::{Class, classify, identify},
    statistics::{LegCells, LegStatistics},
    table::{Control, Leg, Side, Source},
};
