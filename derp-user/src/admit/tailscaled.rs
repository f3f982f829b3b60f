//! `-verify-clients`: the local tailscaled is asked whether it knows a node (reference section 3.12).

use std::path::Path;

use hyper::StatusCode;
use serde::de::IgnoredAny;

use super::Verdict;
use crate::{local_api::LocalApi, proto::keys::NodePublic};

/// Longest description of a node.
const MAX_BODY: usize = 1 << 20;

/// Asks the tailscaled at `socket`. The caller limits the time.
pub(super) async fn ask(socket: &Path, key: &NodePublic) -> (Verdict, String) {
    let path = format!("/localapi/v0/whois?addr=nodekey%3A{}", key.to_hex());
    match LocalApi::new(socket.to_owned()).get(&path, MAX_BODY).await {
        Ok((status, body)) => judge(key, status, &body),
        Err(reason) => (
            Verdict::TailscaledUnreachable,
            format!("failed to query local tailscaled status for {key}: {reason}"),
        ),
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
