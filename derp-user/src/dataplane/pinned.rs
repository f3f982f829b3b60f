//! Taking over from an earlier daemon by what it has pinned.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    AttachedMode, DataplaneError, Kernel, MapSizes, Mode,
    layout::Layout,
    pin::{Generation, LinkPin, Meta, PinDirectory, PinError},
    xdp::{Target, try_modes},
};

/// How long an interface may take to be free after its link is gone.
const FREE_PATIENCE: Duration = Duration::from_secs(1);
const FREE_RETRY: Duration = Duration::from_millis(5);

/// Pinned maps with a program for them, and the links of whoever ran before.
pub(super) struct Pinned {
    directory: PinDirectory,
    links: Vec<LinkPin>,
    generation: Generation,
    /// What will be useless once the links have the new program.
    obsolete: Vec<Generation>,
    is_adopted: bool,
    unused: Unused,
    /// Interfaces that were taken out of a link.
    freed: Vec<u32>,
}

impl Pinned {
    /// Finds maps of this layout and takes them with the program, or makes new ones.
    pub(super) fn load(
        directory: PinDirectory,
        layout: &Layout,
        sizes: MapSizes,
    ) -> Result<(Kernel, Self), DataplaneError> {
        let namespace = network_namespace(directory.path())?;
        let links = LinkPin::read_all(directory.path())?;
        let mut generations = Generation::read_all(directory.path())?;
        if holds_another_namespace(&links, &generations, namespace) {
            return Err(PinError::ForeignNamespace { path: directory.path().to_owned() }.into());
        }
        let adopted = adoptable(&mut generations, layout, namespace);
        let is_adopted = adopted.is_some();
        let (mut generation, unused) = match adopted {
            Some(generation) => (generation, Unused(None)),
            None => {
                let number = generations.last().map_or(0, |last| last.number.wrapping_add(1));
                let meta = Meta::empty(layout.digest, namespace, now());
                match Generation::create(directory.path(), number, meta) {
                    Ok(generation) => (generation.clone(), Unused(Some(generation))),
                    Err(error) => {
                        // A directory that was made in vain would be in the way of another user.
                        if links.is_empty() && generations.is_empty() {
                            let _ = directory.clear();
                        }
                        return Err(error);
                    }
                }
            }
        };
        let keep = generation.program_of(&layout.object).is_some();
        let kernel = Kernel::load_pinned(layout, sizes, &mut generation, keep)?;
        if is_adopted {
            let what = if keep { "program and maps" } else { "maps" };
            tracing::info!("the {what} pinned in {} are adopted", directory.path().display());
        }
        let obsolete = generations;
        Ok((
            kernel,
            Self { directory, links, generation, obsolete, is_adopted, unused, freed: Vec::new() },
        ))
    }

    /// Tells whether the maps are those of an earlier daemon.
    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Declares the tables filled: from now on, whoever comes next may adopt them.
    pub(super) fn publish(mut self) -> Result<Published, DataplaneError> {
        if let Some(meta) = self.generation.meta.clone() {
            let process = std::process::id();
            self.generation.write(Meta { is_complete: true, process, taken: now(), ..meta })?;
        }
        Ok(Published(self))
    }
}

/// A generation that was made, until something uses it: then it is kept, else it goes with this.
struct Unused(Option<Generation>);

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(generation) = &self.0
            && let Err(error) = generation.remove()
        {
            tracing::debug!(%error, "maps that were made in vain stay until the next start");
        }
    }
}

/// Pinned maps that are filled.
pub(super) struct Published(Pinned);

impl Published {
    /// Puts the program on an interface: into the link that is there, else by a new one.
    pub(super) fn attach(
        &mut self,
        kernel: &mut Kernel,
        target: &Target,
        mode: Mode,
    ) -> Result<AttachedMode, DataplaneError> {
        let links = self.0.links.iter();
        let existing = links.filter(|link| link.is_alive).find(|link| link.index == target.index);
        let existing = existing.cloned();
        let attached = match existing {
            Some(link) if mode.candidates().contains(&link.mode) => {
                match take_over(kernel, &link) {
                    Ok(()) => Ok(link.mode),
                    Err(error) => {
                        let interface = &target.name;
                        tracing::warn!(interface, %error, "attaching anew, with a gap");
                        self.free(&link)?;
                        self.attach_new(kernel, target, mode)
                    }
                }
            }
            Some(link) => self.change_mode(kernel, target, &link, mode),
            None => self.attach_new(kernel, target, mode),
        };
        if attached.is_ok() {
            self.0.unused.0.take();
        }
        attached
    }

    /// An interface has one mode at a time: it is free for a moment.
    fn change_mode(
        &mut self,
        kernel: &mut Kernel,
        target: &Target,
        link: &LinkPin,
        mode: Mode,
    ) -> Result<AttachedMode, DataplaneError> {
        let interface = &target.name;
        tracing::warn!(interface, from = %link.mode, to = %mode, "changing the mode, with a gap");
        self.free(link)?;
        let changed = self.attach_new(kernel, target, mode);
        if changed.is_err() {
            // This daemon will not run. What ran before should.
            let path = LinkPin::path(self.0.directory.path(), link.mode, link.index);
            if let Err(error) = kernel.attach_pinned(target, link.mode, &path) {
                tracing::warn!(interface, %error, "it cannot be attached as before, either");
            }
        }
        changed
    }

    fn attach_new(
        &mut self,
        kernel: &mut Kernel,
        target: &Target,
        mode: Mode,
    ) -> Result<AttachedMode, DataplaneError> {
        try_modes(target, mode, |candidate| {
            let path = LinkPin::path(self.0.directory.path(), candidate, target.index);
            // An interface that is gone may have had the same number.
            if let Some(stale) = self.0.links.iter().find(|link| link.path == path).cloned() {
                self.free(&stale)?;
            }
            let deadline = Instant::now() + FREE_PATIENCE;
            loop {
                match kernel.attach_pinned(target, candidate, &path) {
                    // It was ours a moment ago.
                    Err(DataplaneError::Occupied { .. })
                        if self.0.freed.contains(&target.index) && Instant::now() < deadline =>
                    {
                        thread::sleep(FREE_RETRY);
                    }
                    other => return other,
                }
            }
        })
    }

    /// Takes a link off its interface.
    fn free(&mut self, link: &LinkPin) -> Result<(), DataplaneError> {
        link.remove()?;
        self.0.links.retain(|other| other.path != link.path);
        self.0.freed.push(link.index);
        Ok(())
    }

    /// Removes what nothing needs any more.
    pub(super) fn tidy(self, targets: &[Target]) -> PinDirectory {
        let Self(Pinned { directory, links, obsolete, .. }) = self;
        for link in links {
            let is_wanted = targets.iter().any(|target| target.index == link.index);
            if link.is_alive && is_wanted {
                continue;
            }
            let why = if link.is_alive { "no longer configured" } else { "gone" };
            tracing::info!("XDP detached from interface {}, which is {why}", link.index);
            if let Err(error) = link.remove() {
                tracing::warn!("{error}");
            }
        }
        for generation in obsolete {
            if let Err(error) = generation.remove() {
                tracing::warn!("{error}");
            }
        }
        directory
    }
}

/// Puts the program into a link, unless it is there.
fn take_over(kernel: &mut Kernel, link: &LinkPin) -> Result<(), DataplaneError> {
    if kernel.program_info()?.id() == link.program {
        return Ok(());
    }
    kernel.replace_in(link)
}

/// Takes the newest generation that this layout can use out of the list. Says why the newest cannot.
fn adoptable(
    generations: &mut Vec<Generation>,
    layout: &Layout,
    namespace: u64,
) -> Option<Generation> {
    let mismatches = generations.iter().map(|it| it.mismatch(layout, namespace));
    let mismatches: Vec<_> = mismatches.collect();
    match mismatches.iter().rposition(Option::is_none) {
        Some(found) => Some(generations.remove(found)),
        None => {
            if let Some(Some(reason)) = mismatches.last() {
                tracing::info!("what is pinned will be replaced: {reason}");
            }
            None
        }
    }
}

/// Tells whether the links are on interfaces of another network namespace.
fn holds_another_namespace(links: &[LinkPin], generations: &[Generation], namespace: u64) -> bool {
    let newest = generations.iter().rev().find_map(|generation| generation.meta.as_ref());
    let is_foreign = newest.is_some_and(|meta| meta.namespace != namespace);
    is_foreign && links.iter().any(|link| link.is_alive)
}

/// Deals with what an earlier daemon left, when this one has no use for the kernel.
pub(super) fn leave(directory: Option<&Path>, is_unwanted: bool) {
    let Some(path) = directory else { return };
    let found = match find_left(path) {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!("pins are left alone: {error}");
            return;
        }
    };
    if !is_unwanted {
        tracing::warn!(
            "an earlier derpd's XDP program is still attached (pinned in {}); `derpd detach` removes it",
            path.display()
        );
        return;
    }
    match found.clear() {
        Ok(_) => tracing::info!("XDP of an earlier derpd is detached ({})", path.display()),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Finds links of an earlier daemon that belong to this network namespace and to nobody who runs.
fn find_left(path: &Path) -> Result<Option<PinDirectory>, PinError> {
    let Some(directory) = PinDirectory::take_existing(path)? else { return Ok(None) };
    let links = LinkPin::read_all(path)?;
    let generations = Generation::read_all(path)?;
    let namespace = network_namespace(path)?;
    let is_foreign = holds_another_namespace(&links, &generations, namespace);
    Ok((!links.is_empty() && !is_foreign).then_some(directory))
}

/// The inode of this thread's network namespace.
pub(super) fn network_namespace(pins: &Path) -> Result<u64, PinError> {
    let metadata = fs::metadata("/proc/thread-self/ns/net");
    let metadata = metadata.map_err(PinError::access("tell the network namespace of", pins))?;
    Ok(metadata.ino())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
