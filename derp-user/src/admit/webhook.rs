//! `-verify-client-url`: an HTTP server is asked whether a client may stay (reference section 3.12).

use std::net::IpAddr;

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Map, Value};

use super::{
    Verdict,
    web::{Question, Web},
};
use crate::proto::keys::NodePublic;

/// How much of an answer is read.
const MAX_BODY: usize = 4 << 10;

/// Asks the server at `uri`. `Err` is for what happens before there is an answer: then the
/// operator's choice decides. The caller limits the time.
pub(super) async fn ask(
    web: &Web,
    uri: &Uri,
    key: &NodePublic,
    address: IpAddr,
) -> Result<(Verdict, String), String> {
    let question = Question {
        method: Method::POST,
        uri: uri.clone(),
        headers: HeaderMap::new(),
        body: request_body(key, address),
    };
    let answer = web.ask(question).await?;
    let status = answer.status();
    if status != StatusCode::OK {
        return Ok((Verdict::UrlAnswer, format!("admission controller: {status}")));
    }
    Ok(match answer.body(MAX_BODY).await {
        Ok((body, _)) => judge(&body, key, address),
        Err(reason) => (Verdict::UrlAnswer, format!("admission controller: {reason}")),
    })
}

/// The two fields of the question, in derper's order.
fn request_body(key: &NodePublic, address: IpAddr) -> Bytes {
    format!("{{\"NodePublic\":\"{key}\",\"Source\":\"{}\"}}", address.to_canonical()).into()
}

/// What the body of an answer with status 200 means. Without I/O.
fn judge(body: &[u8], key: &NodePublic, address: IpAddr) -> (Verdict, String) {
    match is_allowed(body) {
        Ok(true) => (Verdict::Allowed, String::new()),
        Ok(false) => {
            let address = address.to_canonical();
            let words = format!("admission controller: {key}/{address} not allowed");
            (Verdict::Denied, words)
        }
        Err(reason) => (Verdict::UrlAnswer, format!("admission controller: {reason}")),
    }
}

/// Reads `{"Allow":true}` as Go does: the first JSON value counts, names match in any case, what is
/// missing or null is false.
fn is_allowed(body: &[u8]) -> Result<bool, String> {
    let mut values =
        serde_json::Deserializer::from_slice(body).into_iter::<Option<Map<String, Value>>>();
    let object = match values.next() {
        Some(Ok(object)) => object.unwrap_or_default(),
        Some(Err(error)) => return Err(format!("the answer is no JSON object: {error}")),
        None => return Err("the answer is empty".to_owned()),
    };
    let mut allowed = false;
    for (name, value) in object {
        match value {
            Value::Bool(value) if name.eq_ignore_ascii_case("Allow") => allowed = value,
            Value::Null => {}
            other if name.eq_ignore_ascii_case("Allow") => {
                return Err(format!("\"Allow\" is {other}, not true or false"));
            }
            Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn case_55_the_question_has_two_fields() {
        let key = NodePublic::from_bytes([0xab; 32]);
        let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped());
        let expected =
            format!("{{\"NodePublic\":\"nodekey:{}\",\"Source\":\"192.0.2.7\"}}", "ab".repeat(32));
        assert_eq!(request_body(&key, mapped), expected);
        let body = request_body(&key, "2001:db8::1".parse().unwrap());
        assert!(serde_json::from_slice::<Value>(&body).is_ok());
    }

    #[test]
    fn answers_are_read_as_go_reads_them() {
        for (body, allowed) in [
            ("{\"Allow\":true}", true),
            ("{\"allow\":true}\n", true),
            ("{\"Allow\":true} rest", true),
            ("{\"Other\":1,\"Allow\":true}", true),
            ("{\"Allow\":false}", false),
            ("{\"Allow\":null}", false),
            ("{}", false),
            ("null", false),
        ] {
            assert_eq!(is_allowed(body.as_bytes()), Ok(allowed), "{body}");
        }
        for body in
            ["", "true", "[]", "{\"Allow\":1}", "{\"Allow\":\"true\"}", "{\"Allow\":true", "<html>"]
        {
            assert!(is_allowed(body.as_bytes()).is_err(), "{body}");
        }
    }
}
