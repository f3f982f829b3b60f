//! How bad it is what the probes have seen. Without I/O.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::traffic::Flow;
use crate::tools::Severity;

const DAY: i64 = 24 * 3600;

/// A finding: how bad, and what.
pub(super) type Verdict = (Severity, String);

/// When certificates are near their end, in days.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expiry {
    pub(super) warning: u32,
    pub(super) critical: u32,
}

/// Judges what a server has shown: its certificates, its own first, and what a client says of them.
pub(super) fn certificates(
    chain: &[impl AsRef<[u8]>],
    fault: Option<&str>,
    is_pinned: bool,
    limits: Expiry,
    now: SystemTime,
) -> Verdict {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let ends = chain.iter().enumerate().filter_map(|(at, certificate)| {
        let (_, certificate) = X509Certificate::from_der(certificate.as_ref()).ok()?;
        // Behind the server's own, what nobody signed is the relay's key or a root: their ends do not matter.
        let counts = at == 0 || certificate.issuer() != certificate.subject();
        counts.then(|| certificate.validity().not_after.timestamp())
    });
    let left = ends.min().map(|end| end.saturating_sub(now));
    if let Some(fault) = fault {
        let text = match left {
            Some(left) if left < 0 && !is_pinned => {
                format!("a certificate has expired {} ago ({fault})", days(-left))
            }
            Some(_) | None => format!("clients refuse the certificate: {fault}"),
        };
        return (Severity::Critical, text);
    }
    let Some(left) = left else {
        return (Severity::Critical, "no certificate is shown".to_owned());
    };
    if is_pinned {
        let text = if left < 0 {
            format!(
                "the pinned certificate has expired {} ago; its clients do not mind",
                days(-left)
            )
        } else {
            format!("the pinned certificate is valid for {}", days(left))
        };
        return (Severity::Ok, text);
    }
    let status = if left < i64::from(limits.critical) * DAY {
        Severity::Critical
    } else if left < i64::from(limits.warning) * DAY {
        Severity::Warning
    } else {
        Severity::Ok
    };
    let text = if left < 0 {
        format!("a certificate has expired {} ago", days(-left))
    } else {
        format!("the certificate is valid for {}", days(left))
    };
    (status, text)
}

fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => format!("{} hours", seconds / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// Judges the answer to a request for a page.
pub(super) fn page(status: u16, took: Duration) -> Verdict {
    if status == 200 {
        (Severity::Ok, milliseconds(took))
    } else {
        (Severity::Critical, format!("HTTP status {status}, expected 200"))
    }
}

/// Judges a flow of packets; `tolerated` is the share whose loss is no matter, from 0 to 1.
pub(super) fn flow(flow: &Flow, tolerated: f64) -> Verdict {
    let lost = flow.sent.saturating_sub(flow.delays.count());
    let share = lost as f64 / flow.sent.max(1) as f64;
    let status = if flow.delays.count() == 0 || share > 10.0 * tolerated {
        Severity::Critical
    } else if share > tolerated {
        Severity::Warning
    } else {
        Severity::Ok
    };
    let delays = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)]
        .map(|(name, share)| format!("{name} {}", milliseconds(flow.delays.quantile(share))));
    let text = format!(
        "{} of {} packets lost; delay {}, longest {}",
        lost,
        flow.sent,
        delays.join(", "),
        milliseconds(flow.delays.longest())
    );
    (status, text)
}

/// With two digits behind the point.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
