//! What derpd says to each flag, variable, file and request that it cannot use, word for word.

#[path = "support/binary.rs"]
mod binary;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use self::binary::{HANG, PUBLIC, Place, Relay, derpd, run};

/// Arguments beside those of a relay that would start, the exit status, and the sentence. `{}` is the directory
/// with the files of [`damaged_files`].
const ARGUMENTS: &[(&str, i32, &str)] = &[
    ("-a", 2, "-a needs a value"),
    ("-a 8443", 2, "-a \"8443\": write :port, ip:port or [ip6]:port"),
    ("-a 192.0.2.1", 2, "-a \"192.0.2.1\": write :port, ip:port or [ip6]:port"),
    ("-a :70000", 2, "-a \":70000\": the port must be a number up to 65535"),
    ("-http-port x", 2, "-http-port \"x\": must be a port from 0 to 65535, or -1 for none"),
    ("-http-port=-2", 2, "-http-port \"-2\": must be a port from 0 to 65535, or -1 for none"),
    ("-stun=perhaps", 2, "-stun \"perhaps\": must be true or false"),
    ("-stun extra", 2, "unexpected argument \"extra\"; did you mean -stun=extra?"),
    ("-stun-port x", 2, "-stun-port \"x\": must be a port from 0 to 65535"),
    ("-stun-port 65536", 2, "-stun-port \"65536\": must be a port from 0 to 65535"),
    ("-derp=1x", 2, "-derp \"1x\": must be true or false"),
    (
        "-home example.com",
        2,
        "-home \"example.com\" is not \"blank\" and does not start with http:// or https://",
    ),
    (
        "-proxy-protocol-from 10.0.0.0/40",
        2,
        "-proxy-protocol-from \"10.0.0.0/40\": \"10.0.0.0/40\" is neither an IP address nor a network like 10.0.0.0/8",
    ),
    ("-certmode magic", 2, "-certmode \"magic\": must be one of manual, letsencrypt, gcp"),
    ("-dev=maybe", 2, "-dev \"maybe\": must be true or false"),
    (
        "-mesh-psk-file {}/missing",
        1,
        "-mesh-psk-file: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-mesh-psk-file= -mesh-with a",
        2,
        "-mesh-with \"a\": the servers of a mesh need a common key: give its file with -mesh-psk-file",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with a:70000",
        2,
        "-mesh-with \"a:70000\": \"a:70000\": the port must be 1 to 65535",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with a,",
        2,
        "-mesh-with \"a,\": \"\": it needs a host name or an IP address",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with a/b/c",
        2,
        "-mesh-with \"a/b/c\": \"a/b/c\": too many slashes: write host or host/dial-host",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with [::1",
        2,
        "-mesh-with \"[::1\": \"[::1\": a bracket is missing",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with a -mesh-ca-file {}/missing",
        1,
        "-mesh-ca-file: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-mesh-psk-file {}/mesh.key -mesh-with a -mesh-ca-file {}/empty",
        1,
        "-mesh-ca-file: cannot read {}/empty: it holds no certificate",
    ),
    (
        "-mesh-pin sha256-raw:12",
        2,
        "-mesh-pin \"sha256-raw:12\": \"sha256-raw:12\" is no certificate pin: write sha256-raw: and 64 hexadecimal digits",
    ),
    ("-verify-clients=x", 2, "-verify-clients \"x\": must be true or false"),
    (
        "-verify-client-url admit.example.com",
        2,
        "-verify-client-url \"admit.example.com\": write http://host/path or https://host/path",
    ),
    (
        "-verify-client-url-fail-open=never",
        2,
        "-verify-client-url-fail-open \"never\": must be true or false",
    ),
    (
        "-verify-cache 1m",
        2,
        "-verify-cache \"1m\": there is nothing to remember without -verify-clients or -verify-client-url",
    ),
    ("-verify-clients -verify-cache=-1s", 2, "-verify-cache \"-1s\": must not be negative"),
    (
        "-allow-keys {}/missing",
        1,
        "-allow-keys: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-allow-keys {}/two.keys",
        1,
        "-allow-keys: {}/two.keys:3: a key must have exactly 64 hexadecimal digits",
    ),
    (
        "-allow-keys {}/hex.keys",
        1,
        "-allow-keys: {}/hex.keys:1: a key must start with \"nodekey:\"",
    ),
    ("-allow-keys {}/zero.keys", 1, "-allow-keys: {}/zero.keys:1: the key is all zero"),
    ("-allow-from-api x", 2, "-allow-from-api \"x\": write http://host/path or https://host/path"),
    (
        "-allow-from-api https://a.test/x",
        2,
        "-allow-from-api \"https://a.test/x\": needs -api-token-file, a file with the API key",
    ),
    (
        "-api-token-file {}/empty",
        2,
        "-api-token-file \"{}/empty\": a token is of no use without -allow-from-api",
    ),
    (
        "-allow-from-api https://a.test/x -api-token-file {}/missing",
        1,
        "-api-token-file: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-allow-from-api https://a.test/x -api-token-file {}/empty",
        1,
        "-api-token-file: {}/empty: the file is empty",
    ),
    (
        "-allow-from-api https://a.test/x -api-token-file {}/words",
        1,
        "-api-token-file: {}/words: a token is one word of ASCII characters",
    ),
    ("-api-interval x", 2, "-api-interval \"x\": write a duration like 15s, 1h30m or 100ms"),
    (
        "-api-lifetime 5",
        2,
        "-api-lifetime \"5\": a duration needs a unit, as in 15s, 1h30m or 100ms",
    ),
    (
        "-rate-config {}/missing",
        1,
        "-rate-config: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-rate-config {}/rate.json",
        1,
        "-rate-config: {}/rate.json: \"PerClientRateLimitBytesPerSec\" is -5, not a whole number of bytes",
    ),
    (
        "-rate-config {}/words",
        1,
        "-rate-config: {}/words: not a JSON object of rate limits: expected value at line 1 column 1",
    ),
    (
        "-accept-connection-limit fast",
        2,
        "-accept-connection-limit \"fast\": must be a number of connections per second, or +Inf",
    ),
    (
        "-accept-connection-limit=-1",
        2,
        "-accept-connection-limit \"-1\": must be a number of connections per second, or +Inf",
    ),
    ("-connection-limit 0", 2, "-connection-limit \"0\": must be a number of connections from 1"),
    ("-arrival-limit many", 2, "-arrival-limit \"many\": must be a number of connections from 1"),
    ("-source-limit=-1", 2, "-source-limit \"-1\": must be a number of connections from 1"),
    (
        "-accept-connection-burst 0",
        2,
        "-accept-connection-burst \"0\": must be a number of connections from 1",
    ),
    (
        "-tcp-keepalive-time x",
        2,
        "-tcp-keepalive-time \"x\": write a duration like 15s, 1h30m or 100ms",
    ),
    ("-tcp-user-timeout=-1s", 2, "-tcp-user-timeout \"-1s\": must not be negative"),
    ("-drain-timeout=-1s", 2, "-drain-timeout \"-1s\": must not be negative"),
    ("-drain-timeout 48h", 2, "-drain-timeout \"48h\": is too long"),
    (
        "-tcp-write-timeout 2",
        2,
        "-tcp-write-timeout \"2\": a duration needs a unit, as in 15s, 1h30m or 100ms",
    ),
    ("-min-workers 0", 2, "-min-workers \"0\": must be a number from 1 to 1024"),
    ("-workers 1025", 2, "-workers \"1025\": must be a number from 1 to 1024"),
    ("-workers 1 -min-workers 2", 2, "-min-workers \"2\": more than the 1 that -workers allows"),
    (
        "-xdp-interface nosuch0",
        1,
        "network interface \"nosuch0\" does not exist; `ip -br link` lists those that do",
    ),
    (
        "-stun=false -xdp-interface lo",
        2,
        "-xdp-interface \"lo\": without -config the kernel answers only STUN, which -stun=false switches off",
    ),
    ("-sandbox=on", 2, "-sandbox \"on\": must be true or false"),
    ("-xdp-mode fast", 2, "-xdp-mode \"fast\": must be native, generic, auto or off"),
    ("-xdp-mode native", 1, "-xdp-mode native needs an interface; name one with -xdp-interface"),
    (
        "-xdp-pin bpf",
        2,
        "-xdp-pin \"bpf\": must be `off`, or the absolute path of a directory without `.` in its name",
    ),
    (
        "-config {}/missing",
        1,
        "-config: cannot read {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-config {}/typo.toml",
        1,
        "-config: {}/typo.toml: line 2: [relay] prot: unknown key; did you mean port?",
    ),
    (
        "-config {}/socket.toml",
        1,
        "-config: {}/socket.toml: line 2: [companion] socket: must be an absolute path",
    ),
    (
        "-config {}/both.toml",
        1,
        "-config: {}/both.toml: line 1: [companion]: cannot be given together with [[flow]], [peer_relay] or [wireguard]: the kernel either drops what is no flow's, or leaves it to tailscaled",
    ),
    (
        "-config {}/key.toml",
        1,
        "-config: {}/key.toml: line 5: [[wireguard.network.peer]] public_key: must be a WireGuard public key: 44 letters of base64, as `wg pubkey` prints them",
    ),
    (
        "-config {}/hub.toml",
        1,
        "-config: {}/hub.toml: line 2: [[wireguard.network]] \"x\": pairs = \"star\" needs a hub, the label of a peer",
    ),
    ("-config {}/latin.toml", 1, "-config: {}/latin.toml: not UTF-8"),
    (
        "-config {}/flow.toml",
        1,
        "-config: {}/flow.toml: line 3: [[flow]] \"x\" a: \"192.0.2.1\" is not an address with a port, like 192.0.2.1:51820",
    ),
    (
        "-config {}/relay.toml",
        1,
        "-config: {}/relay.toml: line 5: [peer_relay] stun: \"stun:x\" is not a STUN server, like stun.example.com:3478",
    ),
    (
        "-config {}/cloud.toml",
        1,
        "-config: {}/cloud.toml: line 5: [peer_relay] cloud: must be \"detect\", \"aws\" or \"off\"",
    ),
    (
        "-config {}/control.toml",
        1,
        "-config: {}/control.toml: line 4: [peer_relay] control_url: plain HTTP is only for a private address: whoever is on the way could pose as the control server",
    ),
    (
        "-config {}/auth.toml",
        1,
        "[peer_relay] auth_key_file: {}/missing: No such file or directory (os error 2)",
    ),
    (
        "-log a=b=c",
        2,
        "-log \"a=b=c\": error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
    ),
    ("-version=maybe", 2, "-version \"maybe\": must be true or false"),
    (
        "-hostnam x",
        2,
        "unknown flag -hostnam; did you mean -hostname? (derpd -help lists all flags)",
    ),
    ("-ace", 2, "-ace: derpd does not support tunnels for Tailscale's control plane"),
    ("-secrets-url x", 2, "-secrets-url: derpd does not support secrets from setec"),
    ("start", 2, "unexpected argument \"start\""),
    (
        "-c {}/empty",
        1,
        "-c: {}/empty: not a JSON key file, see line 2 column 0 (the file is left as it is)",
    ),
    (
        "-c {}/short.key",
        1,
        "-c: {}/short.key: \"PrivateKey\": a key must have exactly 64 hexadecimal digits (the file is left as it is)",
    ),
    (
        "-c {}/public.key",
        1,
        "-c: {}/public.key: \"PrivateKey\": a key must start with \"privkey:\" (the file is left as it is)",
    ),
    (
        "-c {}/fieldless.key",
        1,
        "-c: {}/fieldless.key: the field \"PrivateKey\" is missing (the file is left as it is)",
    ),
    (
        "-mesh-psk-file {}/words",
        1,
        "-mesh-psk-file: {}/words: invalid mesh key: a key must have exactly 64 hexadecimal digits",
    ),
    (
        "-certmode manual -certdir {} -hostname derp.example.com",
        1,
        "-hostname derp.example.com needs {}/derp.example.com.crt and {}/derp.example.com.key, and neither exists",
    ),
    (
        "-certmode manual -certdir {} -hostname=",
        2,
        "-hostname \"\": must be the name that the certificate is for",
    ),
    (
        "-bootstrap-dns-names a..b",
        2,
        "-bootstrap-dns-names \"a..b\": \"a..b\" is not a DNS name, nor name/txtname",
    ),
    (
        "-a 127.0.0.1:443 -hostname a.test -acme-directory http://x",
        2,
        "-acme-directory \"http://x\": write https://host/path",
    ),
    (
        "-a 127.0.0.1:443 -hostname a.test -certmode gcp",
        2,
        "-certmode \"gcp\": needs -acme-eab-kid and -acme-eab-key, which `gcloud publicca external-account-keys create` prints",
    ),
    (
        "-a 127.0.0.1:443 -hostname a.test -acme-eab-kid x -acme-eab-key !!",
        2,
        "-acme-eab-key \"...\": must be base64",
    ),
    (
        "-a 127.0.0.1:443 -hostname 192.0.2.1",
        2,
        "-hostname \"192.0.2.1\": an IP address needs -certmode manual for a self-signed certificate, or -acme-ip-certs for one by ACME",
    ),
    (
        "-a 127.0.0.1:443 -hostname a..b",
        2,
        "-hostname \"a..b\": certificates by ACME need a DNS name like derp.example.com",
    ),
    (
        "-a 127.0.0.1:443 -certdir {} -hostname a.test -acme-directory https://127.0.0.1:1/d -acme-ca-file {}/missing",
        1,
        "-acme-ca-file: cannot read {}/missing: No such file or directory (os error 2)",
    ),
];

/// The lines of a file, and the sentence after the name of the file.
const FILES: &[(&str, &str)] = &[
    ("[server", "line 1: unclosed table, expected `]`"),
    ("[server]\naddress = 443", "line 2: [server] address: must be a text in quotes"),
    (
        "[server]\nport = 443",
        "line 2: [server] port: unknown key (there are address, http_port, derp, home, bootstrap_dns_names, unpublished_bootstrap_dns_names, key_file, hostname, certmode, certdir, dev, proxy_protocol_from, sandbox)",
    ),
    ("[server]\nadress = \":1\"", "line 2: [server] adress: unknown key; did you mean address?"),
    ("[server]\nc = \"/k\"", "line 2: [server] c: unknown key; -c is key_file in [server]"),
    ("hostname = \"a.test\"", "line 1: hostname: unknown key; -hostname is hostname in [server]"),
    ("config = \"a\"", "line 1: config: -config has no key"),
    ("server = 1", "line 1: server: must be a table"),
    (
        "[server]\nhttp_port = \"80\"",
        "line 2: [server] http_port: must be a number, without quotes",
    ),
    (
        "[server]\nhttp_port = -2",
        "line 2: [server] http_port: must be a port from 0 to 65535, or -1 for none",
    ),
    (
        "[server]\nproxy_protocol_from = [\"10.0.0.0/40\"]",
        "line 2: [server] proxy_protocol_from: \"10.0.0.0/40\" is neither an IP address nor a network like 10.0.0.0/8",
    ),
    (
        "[server]\nhome = \"example.com\"",
        "line 2: [server] home: must be blank, or start with http:// or https://",
    ),
    ("[stun]\nenabled = \"yes\"", "line 2: [stun] enabled: must be true or false"),
    ("[log]\nformat = \"xml\"", "line 2: [log] format: must be one of auto, human, json, journald"),
    (
        "[limits]\ndrain_timeout = 5",
        "line 2: [limits] drain_timeout: must be a duration in quotes, like \"15s\" or \"1h30m\"",
    ),
    ("[limits]\ndrain_timeout = \"48h\"", "line 2: [limits] drain_timeout: is too long"),
    ("[limits]\nworkers = 0", "line 2: [limits] workers: must be a number from 1 to 1024"),
    (
        "[limits]\nworkers = 1\nmin_workers = 2",
        "line 3: [limits] min_workers: more than the 1 that -workers allows",
    ),
    (
        "[limits]\naccept_connection_limit = -1",
        "line 2: [limits] accept_connection_limit: must be a number of connections per second, or +Inf",
    ),
    (
        "[mesh]\nwith = [\"a\"]",
        "line 2: [mesh] with: the servers of a mesh need a common key: give its file with -mesh-psk-file",
    ),
    (
        "[mesh]\nwith = [\"a,b\"]",
        "line 2: [mesh] with: a comma separates items; give each its own quotes",
    ),
    (
        "[mesh]\npin = [\"sha256-raw:12\"]",
        "line 2: [mesh] pin: \"sha256-raw:12\" is no certificate pin: write sha256-raw: and 64 hexadecimal digits",
    ),
    (
        "[admission]\nverify_cache = \"-1s\"",
        "line 2: [admission] verify_cache: must not be negative",
    ),
    (
        "[admission]\nallow_from_api = \"x\"",
        "line 2: [admission] allow_from_api: write http://host/path or https://host/path",
    ),
    (
        "[dataplane]\nmode = \"fast\"",
        "line 2: [dataplane] mode: must be native, generic, auto or off",
    ),
    ("[dataplane]\ninterface = 1", "line 2: [dataplane] interface: must be a list in brackets"),
    (
        "[dataplane]\npin = \"bpf\"",
        "line 2: [dataplane] pin: must be `off`, or the absolute path of a directory without `.` in its name",
    ),
    ("[acme]\nip_certs = 1", "line 2: [acme] ip_certs: must be true or false"),
    ("[stun]\nrate = -1", "line 2: [stun] rate: must be a number from 0 to 1000000"),
    ("[relay]\nslots = 1000", "line 2: [relay] slots: must be a power of two, like 1024"),
];

/// Tools with arguments, the exit status, and the first line of what they say.
const TOOLS: &[(&str, i32, &str)] = &[
    ("top", 2, "derpd top: standard output is no terminal; --once prints one look"),
    ("top --nonsense", 2, "derpd top: unexpected argument '--nonsense' found"),
    (
        "top nonsense:://x",
        2,
        "derpd top: \"nonsense:://x\" is no address of a relay: it cannot be parsed",
    ),
    (
        "check --pin=relative",
        2,
        "derpd check: invalid value 'relative' for '--pin <DIRECTORY>': must be an absolute path",
    ),
    (
        "check --pin",
        2,
        "derpd check: a value is required for '--pin <DIRECTORY>' but none was supplied",
    ),
    ("check --jsn", 2, "derpd check: unknown flag -jsn (derpd -help lists all flags)"),
    ("check -a", 2, "derpd check: -a needs a value"),
    (
        "check -http-prt 1",
        2,
        "derpd check: unknown flag -http-prt; did you mean -http-port? (derpd -help lists all flags)",
    ),
    (
        "detach --pin=relative",
        2,
        "derpd detach: invalid value 'relative' for '--pin <DIRECTORY>': must be an absolute path",
    ),
    ("detach x", 2, "derpd detach: unexpected argument 'x' found"),
    ("config shw", 2, "derpd config: unrecognized subcommand 'shw'"),
    ("config show -a", 2, "derpd config: -a needs a value"),
    (
        "config show --json=1",
        2,
        "derpd config: unexpected value '1' for '--json' found; no more were expected",
    ),
    (
        "config show -config /missing",
        1,
        "derpd config: -config: cannot read /missing: No such file or directory (os error 2)",
    ),
    (
        "config show -a :1",
        2,
        "derpd config: -c is needed when not running as root: it names the file that keeps the server's key",
    ),
    ("netcheck", 3, "derpd netcheck: the following required arguments were not provided:"),
    (
        "netcheck --derp-map /missing",
        3,
        "derpd netcheck: cannot read the DERP map /missing: No such file or directory (os error 2)",
    ),
    (
        "probe --derp-map https://a.test --timeout x",
        3,
        "derpd probe: invalid value 'x' for '--timeout <TIME>': write a duration like 15s, 1h30m or 100ms",
    ),
    (
        "bench",
        2,
        "derpd bench: a workload is missing, such as throughput (`derpd bench --help` shows how)",
    ),
    (
        "bench throughput --pairs 0",
        2,
        "derpd bench: invalid value '0' for '--pairs <NUMBER>': 0 is not in 1..=1000000 (`derpd bench --help` shows how)",
    ),
    ("completions tcsh", 2, "derpd completions: invalid value 'tcsh' for '<SHELL>'"),
    (
        "man /missing/dir",
        1,
        "derpd man: cannot write the manual: No such file or directory (os error 2)",
    ),
    ("derpmap --format xml", 2, "derpd derpmap: invalid value 'xml' for '--format <FORMAT>'"),
    (
        "derpmap -c=/k -a=:1",
        2,
        "derpd derpmap: clients need a name: give -hostname, as the relay has it",
    ),
    (
        "healthcheck -a 1 -c /k",
        2,
        "derpd healthcheck: -a \"1\": write :port, ip:port or [ip6]:port",
    ),
    (
        "wireguard check -config /missing",
        1,
        "derpd wireguard: -config: cannot read /missing: No such file or directory (os error 2)",
    ),
    ("wireguard check", 2, "derpd wireguard: the following required arguments were not provided:"),
];

/// A variable, its value, and the sentence.
const VARIABLES: &[(&str, &str, &str)] = &[
    (
        "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH",
        "many",
        "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH=\"many\": must be a number from 1 to 65536",
    ),
    (
        "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH",
        "0",
        "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH=\"0\": must be a number from 1 to 65536",
    ),
    ("TS_ALLOW_DEBUG_IP", "localhost", "TS_ALLOW_DEBUG_IP: \"localhost\" is not an IP address"),
    (
        "TS_DEBUG_TRUSTED_CIDRS",
        "10.0.0.0/8,all",
        "TS_DEBUG_TRUSTED_CIDRS: \"all\" is not a network like 10.0.0.0/8",
    ),
    (
        "TS_DEBUG_KEY_PATH",
        "/does/not/exist",
        "TS_DEBUG_KEY_PATH: cannot read /does/not/exist: No such file or directory (os error 2)",
    ),
    (
        "TS_DEBUG_VERBOSE_DROPS",
        "nodekey:00",
        "TS_DEBUG_VERBOSE_DROPS=\"nodekey:00\": a key must have exactly 64 hexadecimal digits",
    ),
    (
        "RUST_LOG",
        "a=b=c",
        "RUST_LOG=\"a=b=c\": error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
    ),
];

/// The lines of a request, the status of the answer, and the first line of what it says.
const REQUESTS: &[(&str, &str, &str)] = &[
    (
        "GET /derp HTTP/1.1|Host: a|Connection: close",
        "426 Upgrade Required",
        "DERP requires connection upgrade",
    ),
    (
        "GET /derp HTTP/1.1|Host: a|Upgrade: foo|Connection: close",
        "426 Upgrade Required",
        "DERP requires connection upgrade",
    ),
    (
        "GET /derp HTTP/1.1|Host: a|Upgrade: websocket|Sec-WebSocket-Protocol: derp|Connection: close",
        "426 Upgrade Required",
        "WebSocket needs HTTP/1.1 and \"Connection: Upgrade\"",
    ),
    (
        "POST /derp HTTP/1.1|Host: a|Upgrade: websocket|Sec-WebSocket-Protocol: derp|Connection: Upgrade, close",
        "405 Method Not Allowed",
        "WebSocket needs the method GET",
    ),
    (
        "GET /derp HTTP/1.1|Host: a|Upgrade: websocket|Sec-WebSocket-Protocol: derp|Connection: Upgrade, close",
        "400 Bad Request",
        "only version 13 of WebSocket is supported",
    ),
    (
        "GET /derp HTTP/1.1|Host: a|Upgrade: websocket|Sec-WebSocket-Protocol: derp|Connection: Upgrade, close|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: short",
        "400 Bad Request",
        "WebSocket needs one Sec-WebSocket-Key: 16 bytes in base64",
    ),
    (
        "POST /derp/probe HTTP/1.1|Host: a|Connection: close",
        "405 Method Not Allowed",
        "bogus probe method",
    ),
    ("CONNECT a:443 HTTP/1.1|Host: a|Connection: close", "403 Forbidden", "CONNECT not enabled"),
    ("GET / HTTP/1.1|Connection: close", "400 Bad Request", "missing required Host header"),
    ("GET / HTTP/3.0|Host: a", "400 Bad Request", ""),
    ("junk", "400 Bad Request", ""),
    ("GET / HTTP/1.1|Host: a|bad header", "400 Bad Request", ""),
    ("POST / HTTP/1.1|Host: a|Content-Length: abc", "400 Bad Request", ""),
    ("POST / HTTP/1.1|Host: a|Content-Length: 5|Content-Length: 6", "400 Bad Request", ""),
    ("GET /debug/nope HTTP/1.1|Host: a|Connection: close", "404 Not Found", "404 page not found"),
    (
        "GET /../../etc/passwd HTTP/1.1|Host: a|Connection: close",
        "307 Temporary Redirect",
        "<a href=\"/etc/passwd\">Temporary Redirect</a>",
    ),
];

/// A peer relay that is to join a tailnet.
fn peer_relay(place: &Place, control: &str) -> String {
    format!(
        "[peer_relay]\nport = 40123\nkey_file = {:?}\ncontrol_url = {control:?}\nauth_key_file = {:?}\n",
        place.path("relay.keys"),
        place.path("missing"),
    )
}

fn damaged_files(place: &Place) {
    let key = PUBLIC.trim_start_matches("nodekey:");
    let zeros = "0".repeat(64);
    for (name, contents) in [
        ("empty", " \n".into()),
        ("words", "rate = 5\n".into()),
        ("two.keys", format!("# ours\n{PUBLIC}\n{PUBLIC} laptop\n").into_bytes()),
        ("hex.keys", key.into()),
        ("zero.keys", format!("nodekey:{zeros}").into_bytes()),
        ("mesh.key", key.into()),
        ("rate.json", "{\"PerClientRateLimitBytesPerSec\":-5}".into()),
        ("short.key", "{\"PrivateKey\":\"privkey:12\"}".into()),
        ("public.key", format!("{{\"PrivateKey\":\"{PUBLIC}\"}}").into_bytes()),
        ("fieldless.key", "{}".into()),
        ("typo.toml", "[relay]\nprot = 1".into()),
        ("socket.toml", "[companion]\nsocket = \"tailscaled.sock\"".into()),
        (
            "both.toml",
            "[companion]\n[peer_relay]\nport = 1\nkey_file = \"/k\"\nallow = \"any\"".into(),
        ),
        (
            "key.toml",
            "[wireguard]\n[[wireguard.network]]\nname = \"x\"\n[[wireguard.network.peer]]\npublic_key = \"secret\"".into(),
        ),
        (
            "hub.toml",
            "[wireguard]\n[[wireguard.network]]\nname = \"x\"\npairs = \"star\"\n\
             [[wireguard.network.peer]]\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
             [[wireguard.network.peer]]\npublic_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"".into(),
        ),
        ("latin.toml", b"# \xff".to_vec()),
        (
            "relay.toml",
            "[peer_relay]\nport = 1\nkey_file = \"/k\"\nallow = []\nstun = [\"stun:x\"]".into(),
        ),
        (
            "cloud.toml",
            "[peer_relay]\nport = 1\nkey_file = \"/k\"\nallow = []\ncloud = \"gcp\"".into(),
        ),
        ("control.toml", peer_relay(place, "http://control.example").into()),
        ("auth.toml", peer_relay(place, "https://127.0.0.1:1").into()),
        ("flow.toml", "[[flow]]\nname = \"x\"\na = \"192.0.2.1\"\nport = 1".into()),
    ] {
        fs::write(place.directory.path().join(name), contents).expect("writable");
    }
}

/// The last line that the program writes, and its exit status; all of what it writes, for a failure.
fn complaint(mut command: std::process::Command) -> ((i32, Option<String>), String) {
    let (status, _, error) = run(&mut command);
    let last = error.lines().last().and_then(|line| line.strip_prefix("derpd: "));
    ((status, last.map(str::to_owned)), error)
}

#[test]
fn every_flag_and_file() {
    let place = Place::new();
    damaged_files(&place);
    let directory = place.path("").trim_end_matches('/').to_owned();
    for (arguments, status, sentence) in ARGUMENTS {
        let arguments = arguments.replace("{}", &directory);
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (said, all) = complaint(derpd(&place.arguments(&arguments)));
        let sentence = sentence.replace("{}", &directory);
        assert_eq!(said, (*status, Some(sentence)), "{arguments:?}: {all}");
    }
}

#[test]
fn every_key_of_the_file() {
    let place = Place::new();
    let file = place.path("bad.toml");
    for (text, sentence) in FILES {
        fs::write(&file, text).expect("writable");
        // Only the key: what a flag says would hide the rest.
        let key = place.path("derper.key");
        let mut command = derpd(&["-config", &file, "-c", &key]);
        command.env("DERP_A", "127.0.0.1:0").env("DERP_STUN_PORT", "0");
        let (said, all) = complaint(command);
        let expected = format!("-config: {file}: {sentence}");
        assert_eq!(said, (1, Some(expected)), "{text}: {all}");
    }
}

#[test]
fn every_tool() {
    let is_root = nix::unistd::geteuid().is_root();
    for (arguments, status, line) in TOOLS {
        // Root has a key file by default.
        if is_root && line.contains("not running as root") {
            continue;
        }
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (got, output, error) = run(&mut derpd(&arguments));
        let first = error.lines().next().unwrap_or_default();
        assert_eq!((got, first), (*status, *line), "{arguments:?}: {output}{error}");
    }
}

#[test]
fn every_variable() {
    let place = Place::new();
    for (name, value, sentence) in VARIABLES {
        let mut command = derpd(&place.arguments(&[]));
        command.env(name, value);
        let (said, all) = complaint(command);
        assert_eq!(said, (1, Some((*sentence).to_owned())), "{name}={value}: {all}");
    }
}

#[test]
fn every_endpoint() {
    let place = Place::new();
    let relay = Relay::start(&mut derpd(&place.arguments(&[])));
    let serving = relay.lines.last().expect("a line");
    let address = serving.rsplit("serving on ").next().expect("an address");
    let long = format!("GET / HTTP/1.1|Host: a|X: {}", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1|Host: a{}", "|X: x".repeat(300));
    let (long, many) = (long.as_str(), many.as_str());
    let too_large = "431 Request Header Fields Too Large";
    let further = [(long, too_large, ""), (many, too_large, "")];
    for (request, status, sentence) in REQUESTS.iter().chain(&further) {
        let mut stream = TcpStream::connect(address).expect("the relay listens");
        stream.set_read_timeout(Some(HANG)).expect("a socket");
        let lines = request.replace('|', "\r\n");
        // It may hang up before it has read everything.
        let _ = stream.write_all(format!("{lines}\r\n\r\n").as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let got =
            (head.lines().next().unwrap_or_default(), body.lines().next().unwrap_or_default());
        assert_eq!(got, (format!("HTTP/1.1 {status}").as_str(), *sentence), "{request:.60}");
    }
}
