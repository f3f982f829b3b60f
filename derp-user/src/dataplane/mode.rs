//! What of XDP was asked for, and what was got.

use std::{fmt, str::FromStr};

use aya::programs::XdpMode;

/// What `-xdp-mode` asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// In the driver, or fail.
    Native,
    /// In the network stack, on any interface, or fail.
    Generic,
    /// The best that works: native, else generic, else userspace.
    #[default]
    Auto,
    /// Userspace only.
    Off,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Native, Self::Generic, Self::Auto, Self::Off];

    /// Returns the name it has on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }

    /// Returns what to try, in order.
    pub(super) const fn candidates(self) -> &'static [AttachedMode] {
        match self {
            Self::Native => &[AttachedMode::Native],
            Self::Generic => &[AttachedMode::Generic],
            Self::Auto => &[AttachedMode::Native, AttachedMode::Generic],
            Self::Off => &[],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is no XDP mode.
#[derive(Debug, thiserror::Error)]
#[error("must be native, generic, auto or off")]
pub struct UnknownMode;

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mode| mode.as_str() == text);
        found.ok_or(UnknownMode)
    }
}

/// How the program is attached to an interface.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AttachedMode {
    /// In the driver, before the network stack.
    Native,
    /// In the network stack; works everywhere, gains less.
    Generic,
}

impl AttachedMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// Returns the name it has in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    pub(super) const fn flag(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

impl fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().expect("own name"), mode);
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = "Native".parse::<Mode>().expect_err("case matters").to_string();
        assert_eq!(error, "must be native, generic, auto or off");
    }
}
