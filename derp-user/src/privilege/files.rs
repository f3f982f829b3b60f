//! Which files the process may still open, by Landlock: those it reads again, those it writes, and what the system's
//! own libraries read.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, make_bitflags,
    path_beneath_rules,
};

/// The newest rights that are handled; the kernel may know fewer.
const HANDLED: ABI = ABI::V6;
/// The version of Linux that has all of them.
const COMPLETE_SINCE: &str = "Linux 6.12";
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// Files are replaced by new ones beside them, see [`crate::files`].
const WRITE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile});
/// The C library's parts and data, the authorities, and figures of the process and the machine. What is not there is
/// left out.
const SYSTEM: [&str; 12] = [
    "/dev/null",
    "/dev/urandom",
    "/gnu/store",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
    "/run/nscd",
    "/sys/class/dmi/id",
    "/sys/devices/system/cpu",
    "/usr",
];
const ETC: &str = "/etc";
const RESOLVER: &str = "/etc/resolv.conf";
/// What is read of [`ETC`] where not all of it may be.
const OF_ETC: [&str; 16] = [
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    RESOLVER,
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
];

/// The files that a relay goes on needing. Whoever replaces a file puts a new one beside it, so each stands for the
/// directory it is in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Files {
    /// Files and directories that are read again.
    pub read: Vec<PathBuf>,
    /// Files and directories that are written.
    pub write: Vec<PathBuf>,
}

impl Files {
    fn readable(&self) -> Vec<PathBuf> {
        places(&self.read)
    }

    fn writable(&self) -> Vec<PathBuf> {
        places(&self.write)
    }
}

/// The directories that files may come to be in, and those that are directories themselves. A link counts by where it
/// is and by where it leads.
fn places(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for path in paths {
        let real = path.canonicalize().ok();
        for path in [Some(path), real.as_ref()].into_iter().flatten() {
            let place = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
            match place {
                Some(place) if place.as_os_str().is_empty() => places.push(PathBuf::from(".")),
                Some(place) => places.push(place.to_owned()),
                None => {}
            }
        }
    }
    places.sort();
    places.dedup();
    places
}

/// What the system's libraries read.
///
/// Root can read all of `/etc`, so it is given only what it needs there. But a rule for a single file is lost when
/// another takes its place, as DHCP clients do with a [`RESOLVER`] that is a plain file: then names could no longer be
/// looked up.
fn system(is_root: bool) -> Vec<PathBuf> {
    let etc: &[&str] = if is_root && !is_replaced(Path::new(RESOLVER)) { &OF_ETC } else { &[ETC] };
    let named: Vec<_> = authorities().chain(resolver_elsewhere()).collect();
    SYSTEM.iter().chain(etc).map(PathBuf::from).chain(places(&named)).collect()
}

/// Where the resolver's settings lead, if not to [`ETC`]: what writes them there replaces the file.
fn resolver_elsewhere() -> Option<PathBuf> {
    let real = Path::new(RESOLVER).canonicalize().ok()?;
    (!real.starts_with(ETC)).then_some(real)
}

/// Whether a file is one of its directory, and not a link out of it or mounted there as containers have it.
fn is_replaced(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Some(directory) = path.parent() else { return false };
    match (path.canonicalize(), path.metadata(), directory.metadata()) {
        (Ok(real), Ok(file), Ok(in_directory)) => {
            real.parent() == Some(directory) && file.dev() == in_directory.dev()
        }
        _ => false,
    }
}

/// Where the environment says that the system's authorities are; they are read again on SIGHUP.
fn authorities() -> impl Iterator<Item = PathBuf> {
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    named.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>())
}

/// Confines the calling thread, and those it will start, to these files; to sending signals to themselves; and to TCP
/// ports that are bound already. Returns what the kernel could not do, if there is something.
pub(super) fn confine(files: &Files, is_root: bool) -> Result<(), String> {
    let status = restrict(files, is_root).map_err(|error| error.to_string())?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err(format!(
            "this kernel's Landlock restricts files, but not all that it could from {COMPLETE_SINCE} on"
        )),
        RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock, or it is not enabled (lsm=)".to_owned())
        }
    }
}

fn restrict(files: &Files, is_root: bool) -> Result<RestrictionStatus, RulesetError> {
    // A service manager may be told by an abstract socket.
    let notifies = std::env::var_os("NOTIFY_SOCKET");
    let is_abstract = notifies.is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'@'));
    let scopes = if is_abstract { Scope::Signal.into() } else { Scope::from_all(HANDLED) };
    Ruleset::default()
        .handle_access(AccessFs::from_all(HANDLED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(scopes)?
        .create()?
        .add_rules(path_beneath_rules(system(is_root), READ))?
        .add_rules(path_beneath_rules(files.readable(), READ))?
        .add_rules(path_beneath_rules(files.writable(), WRITE))?
        .restrict_self()
}

/// Names the files that are not there, whose directories are not either: they cannot be let through.
pub(super) fn missing(files: &Files) -> Vec<PathBuf> {
    let all = files.readable().into_iter().chain(files.writable());
    all.filter(|place| PathFd::new(place).is_err()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_file_stands_for_its_directory_and_for_where_it_leads() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("archive")).expect("a directory");
        fs::create_dir(path("live")).expect("a directory");
        fs::write(path("archive/one.pem"), "").expect("a file");
        symlink("../archive/one.pem", path("live/cert.pem")).expect("a link");
        let link = [path("live/cert.pem")];
        assert_eq!(places(&link), [path("archive"), path("live")]);
        assert_eq!(places(&[path("live")]), [path("live")], "a directory is itself");
        assert_eq!(places(&[path("none/missing.pem")]), [path("none")]);
        assert_eq!(places(&["derpd.toml".into()]), [PathBuf::from(".")]);
        let files = Files { read: vec![path("none/x")], write: vec![path("live/y")] };
        assert_eq!(missing(&files), [path("none")]);
    }

    #[test]
    fn a_plain_file_is_told_from_a_link_elsewhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().canonicalize().expect("its real path");
        let path = |name: &str| directory.join(name);
        fs::create_dir(path("run")).expect("a directory");
        fs::write(path("run/resolv.conf"), "").expect("a file");
        fs::write(path("plain"), "").expect("a file");
        symlink("run/resolv.conf", path("link")).expect("a link");
        assert!(is_replaced(&path("plain")));
        assert!(!is_replaced(&path("link")) && !is_replaced(&path("missing")));
        assert!(!is_replaced(Path::new("/proc")), "mounted there");
    }

    #[test]
    fn only_root_is_kept_from_the_rest_of_etc() {
        assert!(system(false).contains(&ETC.into()));
        let whole = is_replaced(Path::new(RESOLVER));
        assert_eq!(system(true).contains(&ETC.into()), whole);
        assert_eq!(system(true).contains(&"/etc/hosts".into()), !whole);
    }
}
