//! The state machine with its flow table.

mod addresses;
mod cases;
mod defences;
mod handshakes;
mod model;
mod restart;
mod support;
