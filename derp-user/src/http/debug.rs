//! The pages below `/debug/`.

use std::time::Duration;

use hyper::{
    Method, StatusCode,
    http::{HeaderValue, header, request::Parts},
};

use super::{Origin, Reply, Site, flows, mesh, reply, wireguard};

impl Site {
    pub(super) fn debug(&self, request: &Parts, origin: &Origin) -> Reply {
        if !self.settings.access.allows(request, origin) {
            return reply::text(StatusCode::FORBIDDEN, &self.settings.access.refusal(origin));
        }
        let page = match request.uri.path() {
            "/debug/" => {
                return reply::browser(reply::html(StatusCode::OK, self.debug_index()));
            }
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
            "/debug/wireguard" => match (self.settings.wireguard)() {
                Some(view) => wireguard::respond(request, &view),
                None => reply::text(StatusCode::NOT_FOUND, "no [wireguard] is configured"),
            },
            "/debug/mesh" => mesh::respond(request, &(self.settings.mesh)()),
            _ => return reply::text(StatusCode::NOT_FOUND, "404 page not found"),
        };
        below_index(reply::browser(page))
    }

    fn debug_index(&self) -> String {
        let settings = &self.settings;
        let rows: String = [
            ("Uptime", uptime(settings.started.elapsed())),
            ("Version", settings.version.to_owned()),
            ("Machine", settings.machine.clone()),
            ("TLS hostname", settings.hostname.clone()),
            ("Mesh key", (settings.has_mesh_key)().to_string()),
            ("Mesh", mesh::summary(&(settings.mesh)())),
            ("Admission", (settings.admission)()),
        ]
        .into_iter()
        .map(|(name, value)| {
            format!("<tr><th>{name}</th><td>{}</td></tr>\n", reply::escape(&value))
        })
        .collect();
        let main = format!(
            "<h1>derpd debug</h1>\n\
             <table>\n{rows}</table>\n\
             <ul>\n\
             <li><a href=\"/debug/varz\">Metrics</a> in the Prometheus text format, and those of derper \
             <a href=\"/debug/vars\">as JSON</a></li>\n\
             <li><a href=\"/debug/check\">Consistency check</a> of the connection tables</li>\n\
             <li><a href=\"/debug/traffic\">Traffic</a> of each client, every two seconds</li>\n\
             <li><a href=\"/debug/flows\">UDP flows</a>, also \
             <a href=\"/debug/flows?format=json\">as JSON</a></li>\n\
             <li><a href=\"/debug/wireguard\">WireGuard</a>, also \
             <a href=\"/debug/wireguard?format=json\">as JSON</a></li>\n\
             <li><a href=\"/debug/mesh\">Mesh</a>, also \
             <a href=\"/debug/mesh?format=json\">as JSON</a></li>\n\
             </ul>\n"
        );
        reply::page("derper debug", &main)
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
    let seconds = elapsed.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
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
