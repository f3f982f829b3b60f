//! Which maps the kernel program shares with its successors, and how large they are.
//!
//! The list is read from the object itself, so there is no second one to keep equal.

use aws_lc_rs::digest::{SHA256, digest};
use aya_obj::{EbpfSectionKind, Object};
use derp_common::{
    Reason, Settings,
    decide::StunBuckets,
    flow::table::MAX_SLOTS,
    maps::{
        DEFAULT_SLOTS, LEG_STATISTICS, LEGS, SENDERS, SLOTS, SOURCES, STUN_BUCKETS,
        STUN_BUCKETS_CAPACITY,
    },
};

use super::DataplaneError;

/// How many entries the maps get whose size is a matter of configuration. Memory is taken when they are
/// created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapSizes {
    /// Slots of the flow table, one per flow: a power of two.
    pub slots: u32,
    /// STUN sources whose rates are followed at once.
    pub stun_buckets: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { slots: DEFAULT_SLOTS, stun_buckets: STUN_BUCKETS_CAPACITY }
    }
}

impl MapSizes {
    /// Checks that maps can have these sizes.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::MapSize`] with the value and what is allowed.
    pub fn check(self) -> Result<(), DataplaneError> {
        let Self { slots, stun_buckets } = self;
        if !slots.is_power_of_two() || slots > MAX_SLOTS {
            let allowed = format!("a power of two, at most {MAX_SLOTS}");
            return Err(DataplaneError::MapSize { what: "flow slots", value: slots, allowed });
        }
        if !(1..=MAX_STUN_BUCKETS).contains(&stun_buckets) {
            let allowed = format!("1 to {MAX_STUN_BUCKETS}");
            let what = "STUN sources";
            return Err(DataplaneError::MapSize { what, value: stun_buckets, allowed });
        }
        Ok(())
    }

    /// Returns the entries of a map, where its size is a matter of configuration.
    pub(super) fn entries(self, map: &str) -> Option<u32> {
        match map {
            SLOTS | SENDERS => Some(self.slots),
            LEG_STATISTICS | SOURCES => Some(self.slots * 2),
            LEGS => Some(self.slots * 4),
            STUN_BUCKETS => Some(StunBuckets::count(self.stun_buckets)),
            _ => None,
        }
    }
}

/// Most STUN sources that can be followed; each takes 16 bytes.
const MAX_STUN_BUCKETS: u32 = 1 << 24;

/// The first half of a SHA-256.
pub(super) type Digest = [u8; 16];

/// The shape of one map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct MapShape {
    pub(super) name: String,
    /// The kernel's number of the type (`enum bpf_map_type`).
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    flags: u32,
}

/// The maps of an object, but for those that hold its own constants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Layout {
    /// In order of their names.
    pub(super) maps: Vec<MapShape>,
    /// Tells layouts apart, and also what the bytes in the maps mean.
    pub(super) digest: Digest,
    /// Tells programs apart.
    pub(super) object: Digest,
}

impl Layout {
    /// Reads the layout that a program has when its maps have these sizes.
    pub(super) fn of(object: &[u8], sizes: MapSizes) -> Result<Self, DataplaneError> {
        let parsed = Object::parse(object).map_err(|error| DataplaneError::Load(error.into()))?;
        let mut maps: Vec<_> = parsed
            .maps
            .iter()
            .filter(|(_, map)| is_shared(map.section_kind()))
            .map(|(name, map)| MapShape {
                name: name.clone(),
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: sizes.entries(name).unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            })
            .collect();
        maps.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let digest = half_digest(meaning(&maps).as_bytes());
        Ok(Self { maps, digest, object: half_digest(object) })
    }
}

/// Maps of constants and variables belong to one program.
fn is_shared(section: EbpfSectionKind) -> bool {
    matches!(section, EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps)
}

/// Everything two programs must agree on to work on the same maps, as text.
fn meaning(maps: &[MapShape]) -> String {
    let mut text = format!("settings {}\n", Settings::VERSION);
    // The counters' indexes follow from the order of the reasons.
    for reason in Reason::ALL {
        text.push_str(reason.label());
        text.push('\n');
    }
    for MapShape { name, kind, key_size, value_size, max_entries, flags } in maps {
        text.push_str(&format!("{name} {kind} {key_size} {value_size} {max_entries} {flags}\n"));
    }
    text
}

fn half_digest(bytes: &[u8]) -> Digest {
    let full = digest(&SHA256, bytes);
    let mut half = Digest::default();
    half.iter_mut().zip(full.as_ref()).for_each(|(to, from)| *to = *from);
    half
}

/// Writes the first eight bytes of a digest in hex, as `derpd -version` does.
pub(super) fn short_hex(digest: &Digest) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use derp_common::maps::{ADDRESSES, COUNTERS, INTERFACES, SETTINGS};

    use super::*;
    use crate::dataplane::{embedded_object, object_hash};

    #[test]
    fn sizes_are_checked() {
        let slots = |slots| MapSizes { slots, ..MapSizes::default() }.check();
        assert!(MapSizes::default().check().is_ok());
        assert!(slots(1).is_ok() && slots(MAX_SLOTS).is_ok());
        for wrong in [0, 3, 1000, MAX_SLOTS * 2] {
            let error = slots(wrong).expect_err("refused").to_string();
            assert!(
                error.contains(&wrong.to_string()) && error.contains("power of two"),
                "{error}"
            );
        }
        let none = MapSizes { stun_buckets: 0, ..MapSizes::default() };
        assert!(none.check().is_err());
    }

    #[test]
    fn the_largest_tables_do_not_overflow() {
        let sizes = MapSizes { slots: MAX_SLOTS, stun_buckets: MAX_STUN_BUCKETS };
        assert_eq!(sizes.entries(LEGS), Some(1 << 20));
        assert_eq!(sizes.entries(ADDRESSES), None);
    }

    #[test]
    fn the_objects_maps_are_found_and_its_constants_left_out() {
        let Some(object) = embedded_object() else { return };
        let layout = Layout::of(object, MapSizes::default()).expect("layout");
        let names: Vec<_> = layout.maps.iter().map(|map| map.name.as_str()).collect();
        for name in [ADDRESSES, COUNTERS, INTERFACES, SETTINGS] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
        assert_eq!(short_hex(&layout.object), object_hash().expect("a hash"));
    }

    #[test]
    fn whatever_two_programs_must_agree_on_is_in_the_digest() {
        let map = MapShape {
            name: "A".to_owned(),
            kind: 1,
            key_size: 4,
            value_size: 8,
            max_entries: 16,
            flags: 0,
        };
        let changes: [fn(&mut MapShape); 6] = [
            |map| map.name.push('B'),
            |map| map.kind = 2,
            |map| map.key_size = 8,
            |map| map.value_size = 16,
            |map| map.max_entries = 32,
            |map| map.flags = 1,
        ];
        let before = meaning(std::slice::from_ref(&map));
        for change in changes {
            let mut changed = map.clone();
            change(&mut changed);
            assert_ne!(meaning(&[changed]), before);
        }
    }
}
