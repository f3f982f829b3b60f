//! `-verify-clients`: the local tailscaled is asked whether it knows a node (reference section 3.12).

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::IgnoredAny;
use tokio::net::UnixStream;

use super::{Verdict, web};
use crate::proto::keys::NodePublic;

/// Where tailscaled listens on Linux.
pub const DEFAULT_SOCKET: &str = "/var/run/tailscale/tailscaled.sock";

/// The capability version of the derper whose behaviour this is; tailscaled may look at it.
const CAPABILITY: &str = "145";
/// Longest description of a node.
const MAX_BODY: usize = 1 << 20;

/// Asks the tailscaled at `socket`. The caller limits the time.
pub(super) async fn ask(socket: &Path, key: &NodePublic) -> (Verdict, String) {
    match exchange(socket, key).await {
        Ok((status, body)) => judge(key, status, &body),
        Err(reason) => (
            Verdict::TailscaledUnreachable,
            format!("failed to query local tailscaled status for {key}: {reason}"),
        ),
    }
}

async fn exchange(socket: &Path, key: &NodePublic) -> Result<(StatusCode, Vec<u8>), String> {
    let in_words = |error: hyper::Error| web::in_words(&error);
    let named = |error: std::io::Error| format!("{}: {error}", PathBuf::from(socket).display());
    let stream = UnixStream::connect(socket).await.map_err(named)?;
    let (mut sender, connection) =
        http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(in_words)?;
    let request = Request::get(format!("/localapi/v0/whois?addr=nodekey%3A{}", key.to_hex()))
        .header(HOST, "local-tailscaled.sock")
        .header("Tailscale-Cap", CAPABILITY)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let mut answer = sender.send_request(request).await.map_err(in_words)?;
        let (body, complete) = web::read_body(answer.body_mut(), MAX_BODY).await?;
        if complete { Ok((answer.status(), body)) } else { Err("an endless answer".to_owned()) }
    };
    // The connection must be driven for the answer to come; its own end is no news.
    let connection = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = connection => never,
    }
}

/// What an answer of tailscaled means. Without I/O.
fn judge(key: &NodePublic, status: StatusCode, body: &[u8]) -> (Verdict, String) {
    if status == StatusCode::NOT_FOUND {
        let words = format!("peer {key} not authorized (not found in local tailscaled)");
        return (Verdict::Unknown, words);
    }
    if status == StatusCode::OK {
        return match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => (Verdict::Known, String::new()),
            Err(error) => failed(key, &format!("the answer is no JSON: {error}")),
        };
    }
    let text = String::from_utf8_lossy(body);
    if text.contains("invalid 'addr' parameter") {
        let words = "tailscaled version is too old (out of sync with derper binary)";
        return (Verdict::TooOld, words.to_owned());
    }
    let shown: String = text.trim().chars().take(200).collect();
    failed(key, &format!("{status}: {shown}"))
}

fn failed(key: &NodePublic, reason: &str) -> (Verdict, String) {
    let words = format!("failed to query local tailscaled status for {key}: {reason}");
    (Verdict::TailscaledAnswer, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_derper_takes_them_for() {
        let key = NodePublic::from_bytes([7; 32]);
        let judge = |status, body: &str| {
            judge(&key, StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert_eq!(judge(200, "{\"Node\":{}}").0, Verdict::Known);
        assert_eq!(judge(200, "not JSON").0, Verdict::TailscaledAnswer);
        assert_eq!(judge(200, "").0, Verdict::TailscaledAnswer);
        assert_eq!(judge(404, "no match").0, Verdict::Unknown);
        assert_eq!(judge(400, "invalid 'addr' parameter\n").0, Verdict::TooOld);
        let (verdict, words) = judge(403, "whois access denied\n");
        assert_eq!(verdict, Verdict::TailscaledAnswer);
        assert!(words.ends_with("403 Forbidden: whois access denied"), "{words}");
        assert_eq!(
            judge(404, "").1,
            format!("peer {key} not authorized (not found in local tailscaled)")
        );
    }
}
