//! derpd.
fn main() {}
