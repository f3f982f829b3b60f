//! The parts together, also against a control server that says what a test wants.

mod fake;
mod joining;
mod netmap;
mod noise;
mod trouble;
