//! The home page, which also answers every path that nothing else does.

use hyper::{
    StatusCode,
    http::{HeaderValue, request::Parts},
};

use super::{Origin, Reply, Site, reply};

/// Style of the home page and the debug index.
pub(super) const STYLE: &str = include_str!("style.css");

/// What the home page shows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Home {
    /// A short page that says what this server is.
    #[default]
    BuiltIn,
    /// Nothing.
    Blank,
    /// Another site, by redirect.
    Redirect(String),
}

/// A value of `-home` that is neither empty, `blank` nor a web address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("-home {0:?} is not \"blank\" and does not start with http:// or https://")]
pub struct HomeError(pub String);

impl std::str::FromStr for Home {
    type Err = HomeError;

    fn from_str(text: &str) -> Result<Self, HomeError> {
        match text {
            "" => Ok(Self::BuiltIn),
            "blank" => Ok(Self::Blank),
            url if (url.starts_with("http://") || url.starts_with("https://"))
                && HeaderValue::from_str(url).is_ok() =>
            {
                Ok(Self::Redirect(url.to_owned()))
            }
            other => Err(HomeError(other.to_owned())),
        }
    }
}

impl Site {
    /// Shows another home page from now on, and tells whether it is another.
    pub fn set_home(&self, home: Home) -> bool {
        let mut current = self.home.write();
        let is_other = *current != home;
        *current = home;
        is_other
    }

    pub(super) fn home(&self, request: &Parts, origin: &Origin) -> Reply {
        let page = match &*self.home.read() {
            Home::Redirect(location) => {
                return reply::browser(reply::redirect(
                    &request.method,
                    StatusCode::FOUND,
                    location,
                ));
            }
            Home::Blank => String::new(),
            Home::BuiltIn => self.home_page(self.settings.access.allows(request, origin)),
        };
        reply::browser(reply::html(StatusCode::OK, page))
    }

    fn home_page(&self, debug_access: bool) -> String {
        let status = if self.settings.derp_enabled {
            ""
        } else {
            "<p class=\"notice\">Relaying is <b>disabled</b> on this server.</p>\n"
        };
        let debug = if debug_access {
            "<p><a href=\"/debug/\">Debug pages of this server</a></p>\n"
        } else {
            ""
        };
        let main = format!(
            "<h1>DERP</h1>\n\
             <p>This is a <b>DERP</b> server, run with derpd.</p>\n\
             {status}\
             <p>It helps devices of a <a href=\"https://tailscale.com/\">Tailscale</a> or \
             <a href=\"https://headscale.net/\">Headscale</a> network to find each other, and passes packets between \
             those that cannot connect directly. The packets are WireGuard-encrypted from end to end: this server \
             can neither read nor change them, and keeps none.</p>\n\
             {debug}"
        );
        reply::page("DERP server", &main)
    }
}
