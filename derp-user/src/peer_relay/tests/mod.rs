//! The relay as a whole. `case_N_*` are the numbered test cases of the udp-relay reference (section 9.2).

#[cfg(test)]
mod cases;
#[cfg(test)]
mod limits;
pub(crate) mod model;
#[cfg(test)]
mod operations;
#[cfg_attr(not(test), expect(dead_code, reason = "the models need a part of it"))]
mod support;
#[cfg(test)]
mod vectors;
