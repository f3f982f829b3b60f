//! Tools for whoever runs a relay. Each is a subcommand of `derpd`.

pub mod bench;
