//! The rules of the flow table, one by one; `model` has all of them at once.

mod adopt;
mod learn;
mod model;
mod observe;
mod support;
mod table;
mod update;
mod wireguard;
