//! How the relay is doing, for people who look: one document that the status page at `/debug/` and `derpd top` show.
//!
//! [`Reading`] is what is counted at one moment, [`Samples`] keeps what became of it over the last ten minutes,
//! [`Busiest`] finds the rows of the tables, and [`Status`] is all of it together. Nothing here does I/O.

mod busiest;
mod charts;
mod document;
mod figures;
mod order;
mod samples;
mod series;
pub mod words;

pub use self::{
    busiest::{Busiest, Rates, Seen},
    charts::{CHARTS, Chart, Unit},
    document::{
        Certificate, Client, Clients, Flow, FlowEnd, Flows, Interface, Link, Since, Status,
        certificates, flow, links,
    },
    figures::{Figure, figures},
    order::{ClientOrder, UnknownOrder},
    samples::{History, KEPT, PERIOD, Samples},
    series::{Inputs, KernelPackets, Reading, SERIES, Series},
};

/// Most rows of a table, of those that have most to do.
pub const MOST_ROWS: usize = 100;
