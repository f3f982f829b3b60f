//! The relay as a whole. `case_N_*` are the numbered test cases of the udp-relay reference (section 9.2).

mod cases;
mod limits;
mod model;
mod operations;
mod support;
mod vectors;
