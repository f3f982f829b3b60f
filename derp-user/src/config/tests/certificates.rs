//! Certificates, and when there is TLS.

use super::*;

/// The settings of ACME for a relay with this hostname.
fn acme(hostname: &str, arguments: &[&str]) -> Result<acme::Settings, ConfigError> {
    let hostname = format!("-hostname={hostname}");
    let arguments = [&["-certdir=/certs", hostname.as_str()], arguments].concat();
    Ok(resolve(&arguments)?.tls.unwrap().acme.unwrap())
}

#[test]
fn certificates_come_by_acme_unless_told_otherwise() {
    let expected = || acme::Settings {
        directory: Uri::from_static("https://acme-v02.api.letsencrypt.org/directory"),
        own_directory: false,
        trust: Trust::System,
        contact: None,
        binding: None,
        profile: None,
        addresses: false,
        serves_http: true,
    };
    let name = "Derp.example.com";
    assert_eq!(acme(name, &[]).unwrap(), expected());
    // As in derper, Let's Encrypt is not told of an external account.
    let eab = ["-acme-eab-kid=kid", "-acme-eab-key=a2V5"];
    assert_eq!(acme(name, &eab).unwrap(), expected());
    assert_eq!(
        acme("192.0.2.7", &["-certmode=letsencrypt", "-acme-ip-certs", "-http-port=-1"]).unwrap(),
        acme::Settings { addresses: true, serves_http: false, ..expected() }
    );
    let binding = || Some(acme::Binding { id: "kid".to_owned(), key: "a2V5".parse().unwrap() });
    assert_eq!(
        acme(name, &[&["-certmode=gcp", "-acme-email=a@b.example"], &eab[..]].concat()).unwrap(),
        acme::Settings {
            directory: Uri::from_static("https://dv.acme-v02.api.pki.goog/directory"),
            contact: Some("a@b.example".to_owned()),
            binding: binding(),
            ..expected()
        }
    );
    let own = ["--acme-directory=https://ca.example:9000/acme", "--acme-ca-file=/ca.pem"];
    assert_eq!(
        acme(name, &[&own[..], &["--acme-profile=tlsserver"], &eab[..]].concat()).unwrap(),
        acme::Settings {
            directory: Uri::from_static("https://ca.example:9000/acme"),
            own_directory: true,
            trust: Trust::Roots("/ca.pem".into()),
            binding: binding(),
            profile: Some("tlsserver".to_owned()),
            ..expected()
        }
    );
}

#[test]
fn flags_of_acme_are_checked() {
    let name = "derp.example.com";
    let gcp = "-certmode=gcp";
    let cases: &[(&str, &[&str], &str)] = &[
        ("derp.tailscale.com", &[], "-hostname \"derp.tailscale.com\": is derper's default"),
        ("relay", &[], "-hostname \"relay\": certificates by ACME need a DNS name"),
        ("a_b.example.com", &[], "need a DNS name"),
        ("*.example.com", &[], "need a DNS name"),
        ("derp.example.com.", &[], "need a DNS name"),
        ("192.0.2.7", &[], "an IP address needs -certmode manual"),
        (
            "192.0.2.7",
            &[gcp, "-acme-eab-kid=k", "-acme-eab-key=a2V5", "-acme-email=a@b"],
            "a DNS name",
        ),
        (
            name,
            &["-certmode=manual", "-acme-ip-certs"],
            "-acme-ip-certs \"true\": needs -certmode l",
        ),
        (name, &["-certmode=manual", "--acme-directory=https://a"], "needs -certmode letsencrypt"),
        (name, &[gcp], "-certmode \"gcp\": needs -acme-eab-kid and -acme-eab-key"),
        (name, &[gcp, "-acme-eab-kid=k"], "needs -acme-eab-kid and -acme-eab-key"),
        (name, &[gcp, "-acme-eab-kid=k", "-acme-eab-key=a2V5"], "needs -acme-email"),
        (name, &[gcp, "-acme-ip-certs"], "-acme-ip-certs needs -certmode letsencrypt"),
        (name, &[gcp, "--acme-directory=https://a.example/"], "has a server of its own"),
        (name, &["-acme-email=somebody"], "-acme-email \"somebody\": write name@host"),
        (name, &["-acme-email=a@b,c@d"], "write name@host"),
        (name, &["--acme-directory=http://ca.example/"], "write https://host/path"),
        (name, &["--acme-directory=https://u:p@ca.example/"], "write https://host/path"),
        (name, &["--acme-directory=ca.example"], "write https://host/path"),
        (name, &["--acme-directory=https://a/", "-acme-eab-kid=k"], "needs -acme-eab-key"),
        (name, &["--acme-directory=https://a/", "-acme-eab-key=a2V5"], "needs -acme-eab-kid"),
    ];
    for (hostname, arguments, expected) in cases {
        let error = acme(hostname, arguments).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_status(), 2);
    }
    assert!(acme(name, &["--acme-directory=https://a/", "-acme-eab-key="]).is_ok());
    let error = options(&["-acme-eab-key=a secret"]).unwrap_err();
    assert_eq!(error.to_string(), "-acme-eab-key \"...\": must be base64");
}

#[test]
fn tls_follows_port_and_certificate_mode() {
    let manual = "-certmode=manual";
    let tls = |arguments: &[&str]| resolve(arguments).map(|config| config.tls);
    let expected = |http_port| {
        let certificate_directory = "/certs".into();
        Some(TlsSettings { certificate_directory, acme: None, http_port })
    };
    assert_eq!(tls(&[manual, "-certdir=/certs"]).unwrap(), expected(Some(80)));
    assert_eq!(
        tls(&[manual, "-certdir=/certs", "-a=:1", "-http-port=-1"]).unwrap(),
        expected(None)
    );
    assert_eq!(tls(&["-a=:8080"]).unwrap(), None);
    let own = ["-a=:1", "-hostname=a.example", "-certdir=/certs", "--acme-directory=https://ca/"];
    assert!(tls(&own).unwrap().unwrap().acme.is_some());
    assert_eq!(tls(&["-a=:8080", "-certmode=letsencrypt", "-acme-ip-certs"]).unwrap(), None);
    for arguments in [[manual].as_slice(), &[manual, "-certdir="]] {
        assert!(matches!(tls(arguments), Err(ConfigError::NoCertificateDirectory)));
    }

    let default = |variables: &[(&str, &str)]| {
        let config = resolve_with(&["-c=/key", manual], variables, false).unwrap();
        config.tls.unwrap().certificate_directory
    };
    assert_eq!(default(&[("HOME", "/h")]), Path::new("/h/.cache/tailscale/derper-certs"));
    assert_eq!(
        default(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
        Path::new("/x/tailscale/derper-certs")
    );
}
