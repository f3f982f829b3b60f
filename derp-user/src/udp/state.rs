//! The settings, shared with threads that look at them for every batch.

use derp_common::Settings;

use super::sync::{AtomicU64, Mutex, Ordering};

/// The settings in force, for every thread that decides about packets.
#[derive(Debug)]
pub struct SettingsCell {
    version: AtomicU64,
    settings: Mutex<Settings>,
}

impl SettingsCell {
    /// Holds these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { version: AtomicU64::new(0), settings: Mutex::new(settings) }
    }

    /// Returns the settings in force.
    #[must_use]
    pub fn load(&self) -> Settings {
        *self.settings.lock()
    }

    /// Puts other settings in force: a switch is flipped at run time.
    pub fn store(&self, settings: Settings) {
        *self.settings.lock() = settings;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Changes the settings in force.
    pub fn update(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock());
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// A thread's own copy of the settings.
#[derive(Debug)]
pub struct SettingsView {
    version: u64,
    settings: Settings,
}

impl SettingsView {
    /// Copies the settings in force.
    #[must_use]
    pub fn new(cell: &SettingsCell) -> Self {
        Self { version: cell.version.load(Ordering::Acquire), settings: cell.load() }
    }

    /// Returns the settings in force; one load when they are those of last time.
    pub fn current(&mut self, cell: &SettingsCell) -> &Settings {
        let version = cell.version.load(Ordering::Acquire);
        if version != self.version {
            *self = Self { version, settings: cell.load() };
        }
        &self.settings
    }
}
