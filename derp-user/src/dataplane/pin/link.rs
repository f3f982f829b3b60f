//! Pinned links: what keeps a program on an interface when nobody runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};

use super::PinError;
use crate::dataplane::AttachedMode;

/// The directory of links.
pub(crate) const LINKS: &str = "links";

/// A pinned link, and where it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LinkPin {
    pub(crate) path: PathBuf,
    pub(crate) mode: AttachedMode,
    /// The interface it was made for.
    pub(crate) index: u32,
    /// The program in it, by the kernel's number.
    pub(crate) program: u32,
    /// Whether it still holds an interface: a link outlives the one it was made for.
    pub(crate) is_alive: bool,
}

impl LinkPin {
    /// Returns where the link to an interface is pinned.
    pub(crate) fn path(directory: &Path, mode: AttachedMode, index: u32) -> PathBuf {
        directory.join(LINKS).join(format!("{mode}-{index}"))
    }

    /// Reads every link that is pinned. Files of other names are left alone.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>, PinError> {
        let links = directory.join(LINKS);
        let entries = match fs::read_dir(&links) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PinError::access("read", links)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(PinError::access("read", &links))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if let Some((mode, index)) = name.as_deref().and_then(parse_name) {
                found.push(Self::read(path, mode, index)?);
            }
        }
        found.sort_unstable_by_key(|link| link.index);
        Ok(found)
    }

    fn read(path: PathBuf, mode: AttachedMode, index: u32) -> Result<Self, PinError> {
        let open = |path: &Path| {
            let link = open(path)?;
            let info = link.info().map_err(io::Error::other)?;
            let attached = interface_of(info.id())?;
            Ok((info.program_id(), attached))
        };
        let (program, attached) = open(&path).map_err(PinError::access("read", &path))?;
        Ok(Self { path, mode, index, program, is_alive: attached == Some(index) })
    }

    /// Opens the link. While it is open, it holds its interface even if it is no longer pinned.
    pub(crate) fn open(&self) -> Result<FdLink, PinError> {
        open(&self.path).map_err(PinError::access("open", &self.path))
    }

    /// Lets go of the interface.
    pub(crate) fn remove(&self) -> Result<(), PinError> {
        // Closing the last descriptor detaches at once; removing the last pin does so a little later.
        let link = self.open().ok();
        fs::remove_file(&self.path).map_err(PinError::access("remove", &self.path))?;
        drop(link);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<FdLink> {
    PinnedLink::from_pin(path).map(FdLink::from).map_err(|error| {
        let code = crate::dataplane::error::os_error(&error);
        code.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
    })
}

fn parse_name(name: &str) -> Option<(AttachedMode, u32)> {
    let (mode, index) = name.split_once('-')?;
    let mode = AttachedMode::ALL.into_iter().find(|it| it.as_str() == mode)?;
    Some((mode, index.parse().ok()?))
}

/// Returns the interface an open link holds, as `/proc` tells it: `None` once that is gone.
fn interface_of(link_id: u32) -> io::Result<Option<u32>> {
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The descriptor of this very directory is gone by the time it is looked at.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some(interface) = interface_in(&text, link_id) {
            return Ok((interface != 0).then_some(interface));
        }
    }
    Ok(None)
}

/// Returns the interface in a descriptor's description, if it is this link's.
fn interface_in(text: &str, link_id: u32) -> Option<u32> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u32>().ok()
    };
    if field("link_id:")? != link_id {
        return None;
    }
    field("ifindex:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1059\nlink_type:\txdp\n\
        link_id:\t12\nprog_tag:\tab86b62bea8c5bf3\nprog_id:\t87\nifindex:\t3\n";

    #[test]
    fn the_kernel_says_which_interface_a_link_holds() {
        assert_eq!(interface_in(LINK, 12), Some(3));
        assert_eq!(interface_in(LINK, 1), None);
        assert_eq!(interface_in("pos:\t0\nflags:\t02\n", 12), None);
    }

    #[test]
    fn names_round_trip_and_others_are_not_ours() {
        for mode in AttachedMode::ALL {
            let path = LinkPin::path(Path::new("/d"), mode, 17);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            assert_eq!(parse_name(name), Some((mode, 17)));
        }
        for name in ["native", "native-", "native-x", "fast-3", "native-3-4"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
