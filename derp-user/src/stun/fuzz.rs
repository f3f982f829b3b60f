//! STUN messages out of any bytes.

use super::client::{answer, is_answer};

/// Any bytes are an answer or not; a request is never one.
pub(crate) fn messages(bytes: &[u8]) {
    let answered = answer(bytes);
    assert!(answered.is_none() || is_answer(bytes));
    if let Some((transaction, mapped)) = answered {
        assert_eq!(bytes[8..20], transaction);
        assert!(!matches!(mapped.ip(), std::net::IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()));
    }
}
