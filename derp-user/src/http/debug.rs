//! The pages below `/debug/`.

use std::time::Duration;

use hyper::{
    Method, StatusCode,
    http::{HeaderValue, header, request::Parts},
};

use super::{Origin, Reply, Site, flows, mesh, peer_relay, reply, status, wireguard};
use crate::status::words;

impl Site {
    pub(super) fn debug(&self, request: &Parts, origin: &Origin) -> Reply {
        if let Some(asset) = status::find_asset(request.uri.path()) {
            return asset;
        }
        if !self.settings.access.allows(request, origin) {
            return reply::text(StatusCode::FORBIDDEN, &self.settings.access.refusal(origin));
        }
        let page = match request.uri.path() {
            "/debug/" => {
                let page = status::index(request, &self.facts(), &*self.settings.status);
                return reply::browser(page);
            }
            "/debug/status.json" => status::document(request, &*self.settings.status),
            "/debug/varz" => reply::metrics((self.settings.varz)()),
            "/debug/check" => match (self.settings.check)() {
                Ok(()) => reply::exact_text(
                    StatusCode::OK,
                    "derp.Server ConsistencyCheck okay".to_owned(),
                ),
                Err(findings) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, &findings),
            },
            "/debug/vars" => reply::json_text((self.settings.vars)()),
            // Nobody reads the answer to HEAD.
            "/debug/traffic" if request.method == Method::HEAD => {
                reply::exact_text(StatusCode::OK, String::new())
            }
            "/debug/traffic" => match (self.settings.traffic)() {
                Some(pieces) => reply::text_stream(pieces),
                None => reply::text(StatusCode::SERVICE_UNAVAILABLE, "enough people look already"),
            },
            "/debug/flows" => flows::respond(request, (self.settings.flows)()),
            "/debug/peer-relay" => peer_relay::respond(request, (self.settings.peer_relay)()),
            "/debug/wireguard" => match (self.settings.wireguard)() {
                Some(view) => wireguard::respond(request, &view),
                None => reply::text(StatusCode::NOT_FOUND, "no [wireguard] is configured"),
            },
            "/debug/mesh" => mesh::respond(request, &(self.settings.mesh)()),
            _ => return reply::text(StatusCode::NOT_FOUND, "404 page not found"),
        };
        below_index(reply::browser(page))
    }

    /// What the index says besides how the relay is doing.
    fn facts(&self) -> [(&'static str, String); 7] {
        let settings = &self.settings;
        [
            ("Uptime", uptime(settings.started.elapsed())),
            ("Version", settings.version.to_owned()),
            ("Machine", settings.machine.clone()),
            ("TLS hostname", settings.hostname.clone()),
            ("Mesh key", (settings.has_mesh_key)().to_string()),
            ("Mesh", mesh::summary(&(settings.mesh)())),
            ("Admission", (settings.admission)()),
        ]
    }
}

/// The pages below the index may style themselves, as in derper.
fn below_index(mut response: Reply) -> Reply {
    if let Some(policy) = response.headers_mut().get_mut(header::CONTENT_SECURITY_POLICY)
        && let Ok(text) = policy.to_str()
        && let Ok(extended) =
            HeaderValue::try_from(format!("{text}; style-src 'self' 'unsafe-inline'"))
    {
        *policy = extended;
    }
    response
}

/// Returns a time in words.
pub(super) fn uptime(elapsed: Duration) -> String {
    words::duration(elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_shows_its_two_largest_units() {
        for (seconds, expected) in
            [(0, "0 s"), (61, "1 min 1 s"), (3 * 3600 + 59, "3 h 0 min"), (26 * 3600, "1 d 2 h")]
        {
            assert_eq!(uptime(Duration::from_secs(seconds)), expected);
        }
    }
}
