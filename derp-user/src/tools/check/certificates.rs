//! The certificate that clients are shown: its name, its time, its chain.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

use super::{Report, files::private};
use crate::{
    acme,
    config::{Config, TlsSettings},
    tls::{FilePair, Name, ServerCertificate, TlsError, load_certificate},
};

/// Whoever renews by hand ought to know by then.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
const DAY: u64 = 24 * 3600;

pub(super) fn check(report: &mut Report, config: &Config, now: SystemTime) {
    let Some(tls) = &config.tls else {
        return report.ok("tls", format!("plain HTTP on {}: no certificate", config.listen));
    };
    match &tls.acme {
        None => manual(report, tls, &config.hostname, now),
        Some(settings) => by_acme(report, tls, settings, &config.hostname, now),
    }
}

fn manual(report: &mut Report, tls: &TlsSettings, hostname: &str, now: SystemTime) {
    let directory = &tls.certificate_directory;
    let files = FilePair::new(directory, hostname);
    match load_certificate(directory, hostname) {
        Ok(certificate) => {
            judge(report, &certificate, &files.certificate.display().to_string(), now, true);
            private(report, "tls", &files.key);
        }
        Err(TlsError::Missing { .. }) if matches!(Name::new(hostname), Name::Address(_)) => {
            let text =
                format!("derpd makes a self-signed certificate of {hostname} when it starts");
            report.note("tls", text);
        }
        Err(error) => report.problem("tls", error.to_string(), None),
    }
}

fn by_acme(
    report: &mut Report,
    tls: &TlsSettings,
    settings: &acme::Settings,
    hostname: &str,
    now: SystemTime,
) {
    let place = tls.certificate_directory.display();
    match acme::stored_certificate(settings, &tls.certificate_directory, hostname) {
        Ok(Some(certificate)) => {
            judge(report, &certificate, &format!("the one of {hostname} in {place}"), now, false);
        }
        Ok(None) => {
            let host = settings.directory.host().unwrap_or_default();
            report.note(
                "tls",
                format!("no certificate of {hostname} yet: derpd orders one from {host}"),
            );
        }
        Err(error) => report.problem("tls", error.to_string(), None),
    }
}

/// Says what clients would say.
fn judge(
    report: &mut Report,
    certificate: &ServerCertificate,
    name: &str,
    now: SystemTime,
    is_manual: bool,
) {
    let lifetime = certificate.lifetime;
    let hostname = &certificate.hostname;
    let days = |duration: Duration| duration.as_secs() / DAY;
    let renew =
        is_manual.then_some("put a new one in its place; a running derpd takes it up by itself");
    if let Ok(early) = lifetime.not_before.duration_since(now)
        && !early.is_zero()
    {
        let text = format!("{name}: not valid before {} days from now", days(early) + 1);
        report.problem("tls", text, Some("is the clock right?"));
    } else if let Ok(late) = now.duration_since(lifetime.not_after) {
        let text = format!("{name}: expired {} days ago", days(late));
        if is_manual { report.problem("tls", text, renew) } else { report.note("tls", text) }
    } else {
        let left = lifetime.not_after.duration_since(now).unwrap_or_default();
        let text = format!("{name}: valid for {hostname}, {} days more", days(left));
        if left < SOON && is_manual { report.note("tls", text) } else { report.ok("tls", text) }
    }
    match chain_fault(&certificate.key.cert) {
        Some(fault) => report.problem(
            "tls",
            format!("{name}: {fault}"),
            Some("write the server's certificate first, then whoever signed it, and so on"),
        ),
        None if is_unaccompanied(&certificate.key.cert) => report.note(
            "tls",
            format!("{name}: it comes without its authority's intermediate certificate, which most clients need"),
        ),
        None => {}
    }
}

/// Says which certificate of a chain is not of who signed the one before it.
fn chain_fault(chain: &[CertificateDer<'_>]) -> Option<String> {
    for (index, pair) in chain.windows(2).enumerate() {
        let (_, signed) = parse_x509_certificate(&pair[0]).ok()?;
        let (_, signer) = parse_x509_certificate(&pair[1]).ok()?;
        if signed.issuer().as_raw() != signer.subject().as_raw() {
            let (first, second) = (index + 1, index + 2);
            let (issuer, subject) = (signed.issuer(), signer.subject());
            return Some(format!(
                "certificate {first} is signed by {issuer:?}, and certificate {second} is of {subject:?}",
                issuer = issuer.to_string(),
                subject = subject.to_string(),
            ));
        }
    }
    None
}

/// Whether a certificate is alone that somebody else has signed.
fn is_unaccompanied(chain: &[CertificateDer<'_>]) -> bool {
    let [only] = chain else { return false };
    parse_x509_certificate(only).is_ok_and(|(_, it)| it.issuer().as_raw() != it.subject().as_raw())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    fn chain() -> [CertificateDer<'static>; 2] {
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("names");
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = authority.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::from_params(&authority, &authority_key);
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new(vec!["derp.example.com".to_owned()]).expect("names");
        leaf.distinguished_name.push(DnType::CommonName, "leaf");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        [leaf.der().clone(), signed.der().clone()]
    }

    #[test]
    fn chains_are_in_order_or_it_is_said_where_not() {
        let [leaf, authority] = chain();
        assert_eq!(chain_fault(&[leaf.clone(), authority.clone()]), None);
        assert_eq!(chain_fault(std::slice::from_ref(&authority)), None);
        let fault = chain_fault(&[authority.clone(), leaf.clone()]).expect("a fault");
        assert!(fault.starts_with("certificate 1 is signed by \"CN=authority\""), "{fault}");
        assert!(is_unaccompanied(std::slice::from_ref(&leaf)));
        assert!(!is_unaccompanied(&[leaf, authority.clone()]) && !is_unaccompanied(&[authority]));
    }
}
