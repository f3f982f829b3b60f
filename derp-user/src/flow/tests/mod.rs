//! The rules of the flow table, one by one; `model` has all of them at once.

#[cfg(test)]
mod adopt;
#[cfg(test)]
mod learn;
pub(crate) mod model;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod revise;
#[cfg_attr(not(test), expect(dead_code, reason = "the models need a part of it"))]
mod support;
#[cfg(test)]
mod table;
#[cfg(test)]
mod update;
#[cfg(test)]
mod wireguard;
