//! The state machine with its flow table.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod defences;
#[cfg(test)]
mod handshakes;
pub(crate) mod model;
#[cfg(test)]
mod restart;
#[cfg_attr(not(test), expect(dead_code, reason = "the models need a part of it"))]
mod support;
