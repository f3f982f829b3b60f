//! What the flags of certificates mean.

use std::path::PathBuf;

use hyper::Uri;

use super::{CertificateMode, ConfigError, Environment, Options};
use crate::{acme, client::Trust, tls::Name};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const GOOGLE: &str = "https://dv.acme-v02.api.pki.goog/directory";
/// The default of `-hostname`: derper's, and nobody's but Tailscale's.
pub(super) const DERPERS_HOSTNAME: &str = "derp.tailscale.com";

/// What TLS needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsSettings {
    /// Directory of certificates and keys.
    pub certificate_directory: PathBuf,
    /// Where they come from if they are not put there: by ACME.
    pub acme: Option<acme::Settings>,
    /// Port of the plain HTTP listener, unless switched off.
    pub http_port: Option<u16>,
}

/// Checks the flags of certificates, for a listener that speaks TLS. Reads no file.
pub(super) fn settings(
    options: &Options,
    environment: &Environment<'_>,
) -> Result<TlsSettings, ConfigError> {
    let acme = acme(options)?;
    let certificate_directory = match options.certdir.as_deref() {
        Some("") => None,
        Some(directory) => Some(PathBuf::from(directory)),
        None => default_directory(environment),
    };
    Ok(TlsSettings {
        certificate_directory: certificate_directory.ok_or(ConfigError::NoCertificateDirectory)?,
        acme,
        http_port: u16::try_from(options.http_port).ok(),
    })
}

fn default_directory(environment: &Environment<'_>) -> Option<PathBuf> {
    let cache = environment
        .text("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| environment.text("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(cache.join("tailscale/derper-certs"))
}

fn acme(options: &Options) -> Result<Option<acme::Settings>, ConfigError> {
    let is_google = match options.certmode {
        CertificateMode::Manual if options.acme_ip_certs => {
            return Err(fault("acme-ip-certs", "true", "needs -certmode letsencrypt"));
        }
        CertificateMode::Manual if !options.acme_directory.is_empty() => {
            let reason = "needs -certmode letsencrypt";
            return Err(fault("acme-directory", &options.acme_directory, reason));
        }
        CertificateMode::Manual if options.hostname.is_empty() => {
            return Err(fault("hostname", "", "must be the name that the certificate is for"));
        }
        CertificateMode::Manual => return Ok(None),
        CertificateMode::LetsEncrypt => false,
        CertificateMode::Gcp => true,
    };
    let own_directory = !options.acme_directory.is_empty();
    if is_google {
        check_google(options, own_directory)?;
    }
    check_hostname(options)?;
    let directory = match (own_directory, is_google) {
        (true, _) => address(&options.acme_directory)?,
        (false, true) => Uri::from_static(GOOGLE),
        (false, false) => Uri::from_static(LETS_ENCRYPT),
    };
    let email = &options.acme_email;
    if !email.is_empty() && !is_email(email) {
        return Err(fault("acme-email", email, "write name@host"));
    }
    let trust = match options.acme_ca_file.as_str() {
        "" => Trust::System,
        path => Trust::Roots(PathBuf::from(path)),
    };
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(Some(acme::Settings {
        directory,
        own_directory,
        trust,
        contact: text(email),
        // As in derper, Let's Encrypt is not told of an external account: it wants none.
        binding: if own_directory || is_google { binding(options)? } else { None },
        profile: text(&options.acme_profile),
        addresses: options.acme_ip_certs,
        serves_http: options.http_port >= 0,
    }))
}

fn check_google(options: &Options, own_directory: bool) -> Result<(), ConfigError> {
    let reason = if own_directory {
        "has a server of its own: with --acme-directory, use -certmode letsencrypt"
    } else if options.acme_ip_certs {
        "has no certificates for IP addresses: -acme-ip-certs needs -certmode letsencrypt"
    } else if options.acme_eab_kid.is_empty() || binding_key(options).is_none() {
        "needs -acme-eab-kid and -acme-eab-key, which `gcloud publicca external-account-keys create` prints"
    } else if options.acme_email.is_empty() {
        "needs -acme-email"
    } else {
        return Ok(());
    };
    Err(fault("certmode", "gcp", reason))
}

/// Whether an authority can be asked for a certificate of the hostname.
fn check_hostname(options: &Options) -> Result<(), ConfigError> {
    let hostname = &options.hostname;
    let reason = match Name::new(hostname) {
        Name::Address(_) if options.certmode == CertificateMode::Gcp => {
            "-certmode gcp needs a DNS name"
        }
        Name::Address(_) if !options.acme_ip_certs => {
            "an IP address needs -certmode manual for a self-signed certificate, or -acme-ip-certs \
             for one by ACME"
        }
        Name::Address(_) => return Ok(()),
        Name::Dns(_) if hostname == DERPERS_HOSTNAME => {
            "is derper's default, and no name of yours: give the one that leads here, or -certmode manual"
        }
        Name::Dns(name) if !is_public_name(&name) => {
            "certificates by ACME need a DNS name like derp.example.com"
        }
        Name::Dns(_) => return Ok(()),
    };
    Err(fault("hostname", hostname, reason))
}

/// Letters, digits and dashes in at least two labels: the form of names that authorities certify.
fn is_public_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

fn is_email(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b",?".contains(&byte));
    is_plain
        && text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
}

fn binding_key(options: &Options) -> Option<&acme::BindingKey> {
    options.acme_eab_key.as_ref().filter(|key| !key.is_empty())
}

fn binding(options: &Options) -> Result<Option<acme::Binding>, ConfigError> {
    match (options.acme_eab_kid.as_str(), binding_key(options)) {
        ("", None) => Ok(None),
        ("", Some(_)) => Err(fault("acme-eab-key", "...", "needs -acme-eab-kid")),
        (id, None) => Err(fault("acme-eab-kid", id, "needs -acme-eab-key")),
        (id, Some(key)) => Ok(Some(acme::Binding { id: id.to_owned(), key: key.clone() })),
    }
}

fn address(text: &str) -> Result<Uri, ConfigError> {
    text.parse::<Uri>()
        .ok()
        .filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some())
        .filter(|uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@')))
        .ok_or_else(|| fault("acme-directory", text, "write https://host/path"))
}

fn fault(flag: &'static str, value: &str, reason: &str) -> ConfigError {
    ConfigError::Flag { flag, value: value.to_owned(), reason: reason.to_owned() }
}
