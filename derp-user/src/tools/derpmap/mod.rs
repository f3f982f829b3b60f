//! `derpd derpmap`: the DERP map entry of a relay, from the flags that it runs with.

mod arguments;
mod build;
mod error;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;

pub use self::{
    arguments::{Arguments, Format, Own, parse},
    error::DerpmapError,
};
use crate::{client::map::DerpMap, config::Config, tls};

/// A map, and what whoever uses it should know.
#[derive(Debug)]
pub struct Printed {
    map: DerpMap,
    format: Format,
    /// Sentences for the standard error output.
    pub notes: Vec<String>,
}

impl fmt::Display for Printed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&write::write(&self.map, self.format))
    }
}

/// Builds the map of the relay that would run with this configuration. Reads its certificate, and makes none.
///
/// # Errors
///
/// If the relay has no name that clients could use, or a certificate that they would have to know and that
/// is not there yet.
pub fn run(own: &Own, config: &Config) -> Result<Printed, DerpmapError> {
    let certificate = match &config.tls {
        Some(tls) => tls::shown_certificate(&tls.certificate_directory, &config.hostname)?,
        None => None,
    };
    let (map, notes) = build::build(own, config, certificate.as_deref())?;
    Ok(Printed { map, format: own.format, notes })
}
