//! What is kept in `-certdir`: the account's key, and for each name one file with its certificate and key, so
//! that both change at once. Names and contents are derper's: either program goes on where the other stopped.

use std::{
    fs::{self, DirBuilder},
    io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hyper::Uri;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::AcmeError;
use crate::{
    files,
    tls::{FilePair, Name, ServerCertificate},
};

/// The account's file where nobody chose another server than derper.
const ACCOUNT_FILE: &str = "acme_account+key";
/// The first line of a certificate's file says who issued it.
const ORIGIN_PREFIX: &str = "# ACME directory: ";

/// The directory of `-certdir`.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// Address of the server that issues the certificates.
    directory: String,
    account: PathBuf,
}

impl Store {
    /// Makes the directory if it is missing, and makes sure that files can be written to it. `own` is whether
    /// `server` is another one than derper's.
    pub(super) fn open(path: &Path, server: &Uri, own: bool) -> Result<Self, AcmeError> {
        let fault = |source| AcmeError::Directory { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault)?;
        tempfile::Builder::new().prefix(".derpd-").tempfile_in(path).map_err(fault)?;
        Ok(Self::at(path, server, own))
    }

    /// The same, as it is.
    pub(super) fn at(path: &Path, server: &Uri, own: bool) -> Self {
        let account = if own {
            let host = server.authority().map(|authority| authority.as_str()).unwrap_or_default();
            format!("{ACCOUNT_FILE}+{}", host.replace(':', "_"))
        } else {
            ACCOUNT_FILE.to_owned()
        };
        Self { path: path.to_owned(), directory: server.to_string(), account: path.join(account) }
    }

    /// The account's key, if there is one.
    pub(super) fn account_key(&self) -> Result<Option<PrivatePkcs8KeyDer<'static>>, AcmeError> {
        let path = || self.account.clone();
        let pem = match files::read_bounded(&self.account) {
            Ok(pem) => Zeroizing::new(pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AcmeError::Read { path: path(), source }),
        };
        let fault = |reason: String| AcmeError::AccountKey { path: path(), reason };
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| fault(error.to_string()))?;
        // derper keeps it as SEC1, we as PKCS#8.
        let key =
            EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der())
                .map_err(|_| fault("it holds no private key for ECDSA with P-256".to_owned()))?;
        let key = key.to_pkcs8v1().map_err(|error| fault(error.to_string()))?;
        Ok(Some(PrivatePkcs8KeyDer::from(key.as_ref().to_vec())))
    }

    /// Keeps the account's key. An earlier one, which this server does not know, is put aside.
    pub(super) fn keep_account_key(&self, key: &PrivatePkcs8KeyDer<'_>) -> Result<(), AcmeError> {
        let aside = self.account.with_added_extension("old");
        match fs::rename(&self.account, &aside) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(AcmeError::Write { path: aside, source });
            }
            Ok(()) | Err(_) => {}
        }
        let block = pem::Pem::new("PRIVATE KEY", key.secret_pkcs8_der());
        let text = Zeroizing::new(pem::encode(&block));
        files::replace(&self.account, text.as_bytes(), 0o600)
            .map_err(|source| AcmeError::Write { path: self.account.clone(), source })
    }

    /// The certificate of `name`, if there is one that this server issued, or derper got.
    pub(super) fn certificate(&self, name: &Name) -> Result<Option<ServerCertificate>, AcmeError> {
        let path = self.certificate_file(name);
        let text = match files::read_bounded(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AcmeError::Read { path, source }),
        };
        if let Some(origin) = text.strip_prefix(ORIGIN_PREFIX.as_bytes())
            && origin.split(|byte| *byte == b'\n').next() != Some(self.directory.as_bytes())
        {
            tracing::info!("{}: another ACME server's certificate, not used", path.display());
            return Ok(None);
        }
        Ok(Some(Self::parse(name, &path, &text)?))
    }

    /// Keeps the certificate of `name`, instead of an earlier one.
    pub(super) fn keep_certificate(
        &self,
        name: &Name,
        key_pem: &str,
        chain_pem: &str,
    ) -> Result<(), AcmeError> {
        let path = self.certificate_file(name);
        let text =
            Zeroizing::new(format!("{ORIGIN_PREFIX}{}\n{key_pem}{chain_pem}", self.directory));
        files::replace(&path, text.as_bytes(), 0o600)
            .map_err(|source| AcmeError::Write { path, source })
    }

    /// Checks a certificate and its key, both PEM, as if they were in the file of `name`.
    pub(super) fn check(
        &self,
        name: &Name,
        key_pem: &str,
        chain_pem: &str,
    ) -> Result<ServerCertificate, AcmeError> {
        let text = Zeroizing::new(format!("{key_pem}{chain_pem}"));
        Self::parse(name, &self.certificate_file(name), text.as_bytes())
    }

    fn parse(name: &Name, path: &Path, text: &[u8]) -> Result<ServerCertificate, AcmeError> {
        let files = FilePair { certificate: path.to_owned(), key: path.to_owned() };
        Ok(ServerCertificate::from_pem(&name.to_string(), &files, text, text)?)
    }

    /// derper, too, writes dots for the colons of addresses.
    fn certificate_file(&self, name: &Name) -> PathBuf {
        match name {
            Name::Dns(name) => self.path.join(name.to_ascii_lowercase()),
            Name::Address(address @ IpAddr::V4(_)) => self.path.join(address.to_string()),
            Name::Address(address @ IpAddr::V6(_)) => {
                self.path.join(address.to_string().replace(':', "."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SERVER: &str = "https://acme.example/directory";

    fn store(path: &Path, server: &'static str, own: bool) -> Store {
        Store::open(path, &Uri::from_static(server), own).unwrap()
    }

    fn pair(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (key.serialize_pem(), params.self_signed(&key).unwrap().pem())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_kept_is_found_again_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("certs");
        let store = store(&path, SERVER, false);
        assert_eq!(mode(&path), 0o700);
        for (name, file) in [
            ("Derp.example.com", "derp.example.com"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "2001.db8..1"),
        ] {
            let name = Name::new(name);
            assert!(store.certificate(&name).unwrap().is_none());
            let (key, chain) = pair(&name.to_string());
            store.keep_certificate(&name, &key, &chain).unwrap();
            assert_eq!(mode(&path.join(file)), 0o600);
            let found = store.certificate(&name).unwrap().unwrap();
            let kept = store.check(&name, &key, &chain).unwrap();
            assert_eq!(found.key.cert, kept.key.cert);
        }
        let (_, key) = instant_acme::Key::generate_pkcs8().unwrap();
        assert!(store.account_key().unwrap().is_none());
        store.keep_account_key(&key).unwrap();
        assert_eq!(mode(&path.join(ACCOUNT_FILE)), 0o600);
        assert_eq!(store.account_key().unwrap().unwrap(), key);
        let before = fs::read(path.join(ACCOUNT_FILE)).unwrap();
        let (_, another) = instant_acme::Key::generate_pkcs8().unwrap();
        store.keep_account_key(&another).unwrap();
        assert_eq!(store.account_key().unwrap().unwrap(), another);
        assert_eq!(fs::read(path.join("acme_account+key.old")).unwrap(), before);
    }

    /// The layout is that of Go's autocert, with SEC1 keys and no line before them.
    #[test]
    fn derpers_files_are_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), SERVER, false);
        let pair = crate::tls::self_signed_pem("192.0.2.7".parse().unwrap());
        let name = Name::new("192.0.2.7");
        let (key, chain) = pair;
        assert!(key.contains("BEGIN EC PRIVATE KEY"));
        fs::write(directory.path().join("192.0.2.7"), format!("{key}{chain}")).unwrap();
        assert!(store.certificate(&name).unwrap().is_some());
        fs::write(directory.path().join(ACCOUNT_FILE), &key).unwrap();
        let account = store.account_key().unwrap().unwrap();
        instant_acme::Key::from_pkcs8_der(account).unwrap();
    }

    #[test]
    fn another_servers_certificate_and_account_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let name = Name::new("derp.example.com");
        let (key, chain) = pair("derp.example.com");
        let production = store(directory.path(), SERVER, false);
        production.keep_certificate(&name, &key, &chain).unwrap();
        production.keep_account_key(&instant_acme::Key::generate_pkcs8().unwrap().1).unwrap();
        let other = store(directory.path(), "https://ca.example:9000/acme", true);
        assert!(other.certificate(&name).unwrap().is_none());
        assert!(other.account_key().unwrap().is_none());
        assert!(production.certificate(&name).unwrap().is_some());
    }

    #[test]
    fn damaged_files_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), SERVER, false);
        fs::write(directory.path().join("derp.example.com"), "junk").unwrap();
        let error = store.certificate(&Name::new("derp.example.com")).unwrap_err().to_string();
        assert!(error.contains("derp.example.com: not a PEM certificate chain"), "{error}");
        fs::write(directory.path().join(ACCOUNT_FILE), "junk").unwrap();
        let error = store.account_key().unwrap_err().to_string();
        assert!(error.contains("acme_account+key: not the key of an ACME account"), "{error}");
        let not_there = Path::new("/proc/none");
        let error = Store::open(not_there, &Uri::from_static(SERVER), false).unwrap_err();
        assert!(error.to_string().starts_with("-certdir /proc/none: "), "{error}");
    }
}
