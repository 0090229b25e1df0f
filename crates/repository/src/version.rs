//! Versions of a model, and the rule that chooses among them.

use std::{collections::BTreeSet, fmt, num::NonZeroU32, num::NonZeroU64};

/// The version of a model: a positive number, the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(NonZeroU64);

impl Version {
    /// The version with this number; there is no version 0.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number of the version.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The version that a directory of this name holds: `^[1-9][0-9]*$` that fits 64 bits.
    ///
    /// Stricter than a number parser on purpose. `03` and `3` would be two directories for one version,
    /// and `3.tmp` is how a careful copy names what is not ready yet.
    pub fn from_dir_name(name: &str) -> Option<Self> {
        let canonical = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
        if canonical { name.parse().ok().and_then(Self::new) } else { None }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of the versions on disk are to be served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VersionPolicy {
    /// The given number of highest versions.
    Latest(NonZeroU32),
    /// Every version.
    All,
    /// These versions and no others, as far as they are on disk.
    Specific(Vec<Version>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest(NonZeroU32::MIN)
    }
}

impl VersionPolicy {
    /// Chooses from the versions that are on disk; the choice is ascending and without repetition.
    pub fn select(&self, available: impl IntoIterator<Item = Version>) -> Vec<Version> {
        let available: BTreeSet<Version> = available.into_iter().collect();
        match self {
            Self::Latest(count) => {
                let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
                let surplus = available.len().saturating_sub(count);
                available.into_iter().skip(surplus).collect()
            }
            Self::All => available.into_iter().collect(),
            Self::Specific(wanted) => {
                available.into_iter().filter(|version| wanted.contains(version)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions(numbers: &[u64]) -> Vec<Version> {
        numbers.iter().filter_map(|number| Version::new(*number)).collect()
    }

    fn any_policy() -> impl Strategy<Value = VersionPolicy> {
        prop_oneof![
            (1_u32..10).prop_map(|count| VersionPolicy::Latest(NonZeroU32::new(count).unwrap())),
            Just(VersionPolicy::All),
            prop::collection::btree_set(1_u64..20, 0..8).prop_map(|numbers| VersionPolicy::Specific(
                versions(&numbers.into_iter().collect::<Vec<_>>())
            )),
        ]
    }

    #[test]
    fn only_plain_positive_numbers_are_versions() {
        for (name, number) in [("1", 1), ("10", 10), ("18446744073709551615", u64::MAX)] {
            assert_eq!(Version::from_dir_name(name).map(Version::get), Some(number));
        }
        for name in ["", "0", "01", "+1", "-1", "1 ", " 1", "1.0", "3.tmp", "v1", "١", "18446744073709551616"]
        {
            assert_eq!(Version::from_dir_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn the_default_is_the_newest() {
        assert_eq!(VersionPolicy::default().select(versions(&[3, 1, 2])), versions(&[3]));
    }

    proptest! {
        #[test]
        fn a_name_is_a_version_exactly_when_the_version_has_that_name(name in "[0-9+. a]{0,22}") {
            let canonical = name.parse::<u64>().is_ok_and(|number| number > 0 && number.to_string() == name);
            prop_assert_eq!(Version::from_dir_name(&name).is_some(), canonical);
        }

        #[test]
        fn every_number_but_zero_names_its_version(number in 1_u64..) {
            let version = Version::new(number).unwrap();
            prop_assert_eq!(Version::from_dir_name(&version.to_string()), Some(version));
        }

        #[test]
        fn a_choice_is_an_ascending_part_of_the_right_size(
            policy in any_policy(),
            available in prop::collection::vec(1_u64..20, 0..12),
        ) {
            let available = versions(&available);
            let distinct: BTreeSet<Version> = available.iter().copied().collect();
            let chosen = policy.select(available);

            prop_assert!(chosen.is_sorted_by(|left, right| left < right));
            prop_assert!(chosen.iter().all(|version| distinct.contains(version)));
            match policy {
                VersionPolicy::Latest(count) => {
                    prop_assert_eq!(chosen.len(), distinct.len().min(count.get() as usize));
                    let highest_left_out = distinct.iter().filter(|version| !chosen.contains(version)).max();
                    prop_assert!(highest_left_out < chosen.first() || highest_left_out.is_none());
                }
                VersionPolicy::All => prop_assert_eq!(chosen.len(), distinct.len()),
                VersionPolicy::Specific(wanted) => {
                    prop_assert_eq!(chosen.len(), wanted.iter().filter(|v| distinct.contains(v)).count());
                }
            }
        }
    }
}
