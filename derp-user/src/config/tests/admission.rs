//! Who may use the relay, and how much of it.

use super::*;

#[test]
fn admission_is_open_unless_something_is_configured() {
    let settings = |arguments: &[&str]| {
        let mut all = vec!["-a=:1"];
        all.extend(arguments);
        resolve(&all).map(|config| config.admission)
    };
    assert_eq!(settings(&[]).unwrap(), Default::default());
    assert_eq!(settings(&["-socket=/x", "-verify-clients=false"]).unwrap(), Default::default());
    let asked = settings(&["-verify-clients", "-verify-client-url=https://a.test/x"]).unwrap();
    assert_eq!(asked.tailscaled.as_deref(), Some(Path::new("/var/run/tailscale/tailscaled.sock")));
    let url = asked.url.unwrap();
    assert!(url.fail_open, "as derper");
    assert_eq!(url.uri, "https://a.test/x");
    let closed = ["-verify-client-url=http://[::1]:80", "-verify-client-url-fail-open=false"];
    assert!(!settings(&closed).unwrap().url.unwrap().fail_open);
    let api = settings(&["-allow-from-api=https://a.test/api/v1/node", "-api-token-file=/t"]);
    let api = api.unwrap().api.unwrap();
    assert_eq!(
        (api.interval, api.lifetime),
        (Duration::from_secs(60), Some(Duration::from_secs(86400)))
    );
    let forever = ["-allow-from-api=https://a.test", "-api-token-file=/t", "-api-lifetime=0"];
    assert_eq!(settings(&forever).unwrap().api.unwrap().lifetime, None);
}

#[test]
fn settings_of_admission_that_make_no_sense() {
    for (arguments, expected) in [
        (
            ["-verify-client-url=a.test/x"].as_slice(),
            "-verify-client-url \"a.test/x\": write http://host/path or https://host/path",
        ),
        (
            &["-verify-client-url=ftp://a.test/"],
            "-verify-client-url \"ftp://a.test/\": write http://host/path or https://host/path",
        ),
        (
            &["-verify-client-url=https://me:secret@a.test/"],
            "-verify-client-url \"...\": a user name or password in the address is not supported",
        ),
        (
            &["-allow-from-api=/api/v1/node", "-api-token-file=/t"],
            "-allow-from-api \"/api/v1/node\": write http://host/path or https://host/path",
        ),
        (
            &["-allow-from-api=https://a.test/x"],
            "-allow-from-api \"https://a.test/x\": needs -api-token-file, a file with the API key",
        ),
        (
            &["-api-token-file=/t"],
            "-api-token-file \"/t\": a token is of no use without -allow-from-api",
        ),
        (
            &["-allow-from-api=https://a.test", "-api-token-file=/t", "-api-interval=10ms"],
            "-api-interval \"10ms\": must be at least 1s",
        ),
        (
            &["-allow-from-api=https://a.test", "-api-token-file=/t", "-api-interval=-1s"],
            "-api-interval \"-1s\": must not be negative",
        ),
        (
            &["-allow-from-api=https://a.test", "-api-token-file=/t", "-api-lifetime=30s"],
            "-api-lifetime \"30s\": must not be shorter than -api-interval",
        ),
        (&["-verify-clients", "-verify-cache=-1s"], "-verify-cache \"-1s\": must not be negative"),
        (
            &["-verify-cache=1m"],
            "-verify-cache \"1m\": there is nothing to remember without -verify-clients or \
             -verify-client-url",
        ),
        (
            &["-proxy-protocol-from=10.0.0.0/8,proxy"],
            "-proxy-protocol-from \"10.0.0.0/8,proxy\": \"proxy\" is neither an IP address nor a \
             network like 10.0.0.0/8",
        ),
    ] {
        let mut all = vec!["-a=:1"];
        all.extend(arguments);
        let error = resolve(&all).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_status(), 2);
    }
}

#[test]
fn case_57_rate_files_are_read_as_go_reads_them() {
    let limit =
        |bytes_per_second, burst, announced| Some(RateLimit { bytes_per_second, burst, announced });
    for (text, expected) in [
        ("{}", None),
        ("null", None),
        ("{\"PerClientRateLimitBytesPerSec\":0,\"PerClientRateBurstBytes\":9}", None),
        ("{\"PerClientRateLimitBytesPerSec\":1000}", limit(1000, 65568, false)),
        ("{\"perclientratelimitbytespersec\":1000,\"Other\":[]}", limit(1000, 65568, false)),
        (
            "{\"PerClientRateLimitBytesPerSec\":5,\"PerClientRateBurstBytes\":100000}",
            limit(5, 100_000, false),
        ),
        (
            "{\"PerClientRateLimitBytesPerSec\":5,\"PerClientRateBurstBytes\":null,\
             \"AnnounceToClients\":true}",
            limit(5, 65568, true),
        ),
    ] {
        assert_eq!(rate_file::parse_rate_limit(text.as_bytes()), Ok(expected), "{text}");
    }
    for (text, part) in [
        ("", "not a JSON object of rate limits"),
        ("[]", "not a JSON object of rate limits"),
        ("{\"PerClientRateLimitBytesPerSec\":1000", "not a JSON object of rate limits"),
        ("{} {}", "not a JSON object of rate limits"),
        (
            "{\"PerClientRateLimitBytesPerSec\":-1}",
            "\"PerClientRateLimitBytesPerSec\" is -1, not a whole number of bytes",
        ),
        (
            "{\"PerClientRateBurstBytes\":1.5}",
            "\"PerClientRateBurstBytes\" is 1.5, not a whole number of bytes",
        ),
        (
            "{\"PerClientRateLimitBytesPerSec\":\"fast\"}",
            "\"PerClientRateLimitBytesPerSec\" is \"fast\", not a whole number of bytes",
        ),
        ("{\"AnnounceToClients\":1}", "\"AnnounceToClients\" is 1, not true or false"),
    ] {
        let error = rate_file::parse_rate_limit(text.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}
