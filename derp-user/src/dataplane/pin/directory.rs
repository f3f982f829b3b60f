//! The directory of pins: its place, its owner, its lock.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Generation, LINKS, LinkPin, PinError};

/// How long a starting daemon waits for the one it replaces to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long others wait; whoever only looks has the lock for a moment.
const LOOK_PATIENCE: Duration = Duration::from_millis(200);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The directory of pins, which nobody else may change as long as this lives.
#[derive(Debug)]
pub(crate) struct PinDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl PinDirectory {
    /// Takes the directory, making it if it is missing.
    pub(crate) fn take(path: &Path) -> Result<Self, PinError> {
        check_place(path)?;
        make(path)?;
        check_owner(path)?;
        let taken = Self::lock(path, LOCK_PATIENCE)?;
        make(&path.join(LINKS))?;
        Ok(taken)
    }

    /// Takes the directory if it exists and nobody uses it.
    pub(crate) fn take_existing(path: &Path) -> Result<Option<Self>, PinError> {
        if !exists(path)? {
            return Ok(None);
        }
        Self::lock(path, LOOK_PATIENCE).map(Some)
    }

    fn lock(path: &Path, patience: Duration) -> Result<Self, PinError> {
        let mut file = File::open(path).map_err(PinError::access("open", path))?;
        let deadline = Instant::now() + patience;
        loop {
            // The kernel lets go of it when the process ends, however it does.
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err((again, Errno::EWOULDBLOCK)) => file = again,
                Err((_, errno)) => return Err(PinError::access("lock", path)(errno.into())),
            }
            if Instant::now() >= deadline {
                let (path, who) = (path.to_owned(), holder(path));
                return Err(PinError::InUse { path, who });
            }
            thread::sleep(LOCK_RETRY);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes everything a derpd pins, which detaches it, and then the directory.
    pub(crate) fn clear(self) -> Result<Removed, PinError> {
        clear(&self.path)
    }
}

/// Like [`PinDirectory::clear`], under the feet of a daemon that may run.
pub(crate) fn clear(path: &Path) -> Result<Removed, PinError> {
    let mut removed = Removed::default();
    for link in LinkPin::read_all(path)? {
        link.remove()?;
        removed.links.push(link);
    }
    for generation in Generation::read_all(path)? {
        generation.remove()?;
        removed.generations += 1;
    }
    remove_empty(&path.join(LINKS));
    // Not ours to remove where it is a mount point, or where somebody else made it for us.
    removed.directory = remove_empty(path);
    Ok(removed)
}

/// What [`PinDirectory::clear`] has removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Removed {
    pub(crate) links: Vec<LinkPin>,
    pub(crate) generations: usize,
    /// Whether the directory itself is gone.
    pub(crate) directory: bool,
}

/// Tells whether there is such a directory, in a BPF file system.
pub(crate) fn exists(path: &Path) -> Result<bool, PinError> {
    match fs::metadata(path) {
        Ok(_) => check_place(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PinError::access("read", path)(error)),
    }
}

/// Tells whether some daemon has the directory, without disturbing it.
pub(crate) fn is_taken(path: &Path) -> io::Result<bool> {
    match Flock::lock(File::open(path)?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes the files of a directory that has no further ones in it.
pub(crate) fn remove_files(path: &Path) -> Result<(), PinError> {
    for entry in fs::read_dir(path).map_err(PinError::access("read", path))? {
        let file = entry.map_err(PinError::access("read", path))?.path();
        fs::remove_file(&file).map_err(PinError::access("remove", &file))?;
    }
    Ok(())
}

fn remove_empty(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!("{} stays: {error}", path.display());
            false
        }
    }
}

/// Names the daemon that has the directory, if it says so.
fn holder(path: &Path) -> String {
    let generations = Generation::read_all(path).unwrap_or_default();
    let process = generations.into_iter().rev().find_map(|it| Some(it.meta?.process));
    process.map_or_else(String::new, |process| format!(" (process {process})"))
}

/// Checks that the directory is on a BPF file system, or can be made on one.
fn check_place(path: &Path) -> Result<(), PinError> {
    let existing = if path.exists() { Some(path) } else { path.parent() };
    match existing.map(statfs) {
        Some(Ok(kind)) if kind.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        Some(Err(errno @ (Errno::EACCES | Errno::EPERM))) => {
            Err(PinError::access("reach", path)(errno.into()))
        }
        Some(Ok(_) | Err(_)) | None => Err(PinError::NotBpf { path: path.to_owned() }),
    }
}

/// What another user owns, that user may change under our feet.
fn check_owner(path: &Path) -> Result<(), PinError> {
    let metadata = fs::metadata(path).map_err(PinError::access("read", path))?;
    let owner = metadata.uid();
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(PinError::ForeignOwner { path: path.to_owned(), owner })
}

/// Makes a directory for nobody else, unless it exists.
fn make(path: &Path) -> Result<(), PinError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(PinError::access("make", path)(error)),
    }
}
