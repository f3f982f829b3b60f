//! A generation: the maps of one layout, what they say about themselves, and the program that uses them.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::ProgramInfo,
};

use super::{
    Meta, PinError,
    directory::remove_files,
    meta::{META, SIZE},
};
use crate::dataplane::{
    DataplaneError,
    layout::{Digest, Layout, MapShape},
};

const PREFIX: &str = "maps-";
const PROGRAM_PIN: &str = "program";

/// Kinds of map (`enum bpf_map_type`) whose values have a size the loader chooses: CPUMAP, DEVMAP and
/// DEVMAP_HASH.
const VALUES_SIZED_BY_LOADER: [u32; 3] = [16, 14, 25];

/// The maps of one layout.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    /// `None` when it cannot be read, or another version wrote it.
    pub(crate) meta: Option<Meta>,
}

impl Generation {
    /// Reads all there are, the oldest first.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>, PinError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(PinError::access("read", directory))? {
            let path = entry.map_err(PinError::access("read", directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
            if let Some(number) = number {
                let meta = read_meta(&path);
                found.push(Self { number, path, meta });
            }
        }
        found.sort_unstable_by_key(|generation| generation.number);
        Ok(found)
    }

    /// Makes an empty one, which says that it is not complete.
    pub(crate) fn create(
        directory: &Path,
        number: u32,
        meta: Meta,
    ) -> Result<Self, DataplaneError> {
        // First: it says whether this process may do so at all, and then nothing is left behind.
        let map: Array<MapData, [u8; SIZE]> =
            Array::create(1, 0).map_err(|error| DataplaneError::from_load(error.into()))?;
        let path = directory.join(format!("{PREFIX}{number}"));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(PinError::access("make", &path))?;
        let mut generation = Self { number, path, meta: None };
        map.pin(generation.path.join(META))
            .map_err(io::Error::other)
            .map_err(PinError::access("pin a map in", &generation.path))?;
        generation.write(meta)?;
        Ok(generation)
    }

    /// Changes what it says about itself.
    pub(crate) fn write(&mut self, meta: Meta) -> Result<(), PinError> {
        let write = || -> io::Result<()> {
            let mut map = open_meta(&self.path).map_err(io::Error::other)?;
            map.set(0, meta.to_bytes(), 0).map_err(io::Error::other)
        };
        write().map_err(PinError::access("write", self.path.join(META)))?;
        self.meta = Some(meta);
        Ok(())
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Tells whether a file in it is one of the program's maps.
    pub(crate) fn has_map(&self, name: &str) -> bool {
        name != PROGRAM_PIN && name != META && self.map(name).exists()
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path.join(PROGRAM_PIN)
    }

    /// Unpins the program, if it is pinned.
    pub(crate) fn forget_program(&self) -> Result<(), PinError> {
        let path = self.program();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PinError::access("remove", path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Returns the kernel's number of the pinned program, if there is one that came from this object.
    pub(crate) fn program_of(&self, object: &Digest) -> Option<u32> {
        let meta = self.meta.as_ref()?;
        let info = (meta.object == *object).then(|| ProgramInfo::from_pin(self.program()))?;
        info.ok().map(|info| info.id())
    }

    /// Returns why a program with this layout cannot use these maps, if it cannot.
    pub(crate) fn mismatch(&self, layout: &Layout, namespace: u64) -> Option<String> {
        let Some(meta) = &self.meta else {
            return Some("another version of derpd pinned it".to_owned());
        };
        if !meta.is_complete {
            return Some("it was never completed".to_owned());
        }
        if meta.namespace != namespace {
            return Some("it is of another network namespace".to_owned());
        }
        if meta.layout != layout.digest {
            return Some(format!(
                "its maps have another layout or size (settings version {})",
                meta.settings_version
            ));
        }
        layout.maps.iter().find_map(|map| self.map_mismatch(map))
    }

    /// The digest says so already, unless somebody meddled.
    fn map_mismatch(&self, wanted: &MapShape) -> Option<String> {
        let name = &wanted.name;
        let Ok(found) = MapInfo::from_pin(self.map(name)) else {
            return Some(format!("its map {name} is missing"));
        };
        let kind = found.map_type().map(|kind| kind as u32).ok();
        let sized_by_loader = VALUES_SIZED_BY_LOADER.contains(&wanted.kind);
        let fits = kind == Some(wanted.kind)
            && found.key_size() == wanted.key_size
            && (sized_by_loader || found.value_size() == wanted.value_size)
            // The kernel rounds some sizes up.
            && found.max_entries() >= wanted.max_entries;
        (!fits).then(|| format!("its map {name} has another shape"))
    }

    /// Removes it. Programs that use the maps keep them alive.
    pub(crate) fn remove(&self) -> Result<(), PinError> {
        remove_files(&self.path)?;
        fs::remove_dir(&self.path).map_err(PinError::access("remove", &self.path))
    }
}

fn read_meta(path: &Path) -> Option<Meta> {
    let map = open_meta(path).ok()?;
    Meta::from_bytes(&map.get(&0, 0).ok()?)
}

fn open_meta(path: &Path) -> Result<Array<MapData, [u8; SIZE]>, aya::maps::MapError> {
    Map::from_map_data(MapData::from_pin(path.join(META))?)?.try_into()
}
