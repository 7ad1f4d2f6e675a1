//! Tenant ids.

use std::fmt;
use std::sync::Arc;

/// The tenant of requests that name none.
pub const DEFAULT_TENANT: &str = "anonymous";

/// Longest tenant id, in bytes.
const TENANT_ID_BYTES_MAX: usize = 64;

/// Why a string is no tenant id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantIdError {
    /// It is empty.
    #[error("tenant ID is empty: send 1 to 64 characters of [A-Za-z0-9_-] in X-Scope-OrgID")]
    Empty,
    /// It is too long.
    #[error("tenant ID too long (actual: {actual}, limit: {TENANT_ID_BYTES_MAX})")]
    TooLong {
        /// Its length in bytes.
        actual: usize,
    },
    /// It has a character outside the set.
    #[error("tenant ID {id:?} contains {character:?}: allowed are [A-Za-z0-9_-]")]
    Character {
        /// The id as sent.
        id: String,
        /// The first offending character.
        character: char,
    },
    /// It starts with two underscores, which Koios keeps for itself.
    #[error("tenant ID {id:?} is reserved: IDs must not start with \"__\"")]
    Reserved {
        /// The id as sent.
        id: String,
    },
}

/// A tenant: 1 to 64 characters of `[A-Za-z0-9_-]`, not starting with `__`; safe in paths and file names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks an id.
    ///
    /// # Errors
    /// [`TenantIdError`] naming the first thing that is wrong.
    pub fn new(id: &str) -> Result<Self, TenantIdError> {
        if id.is_empty() {
            return Err(TenantIdError::Empty);
        }
        if id.len() > TENANT_ID_BYTES_MAX {
            return Err(TenantIdError::TooLong { actual: id.len() });
        }
        if let Some(character) = id
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
        {
            return Err(TenantIdError::Character {
                id: id.to_owned(),
                character,
            });
        }
        if id.starts_with("__") {
            return Err(TenantIdError::Reserved { id: id.to_owned() });
        }
        Ok(Self(Arc::from(id)))
    }

    /// The default tenant, `anonymous`.
    pub fn anonymous() -> Self {
        Self(Arc::from(DEFAULT_TENANT))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for TenantId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for TenantId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::new(&s).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_leave_its_folder() {
        let long = "x".repeat(65);
        for bad in [
            "",
            ".",
            "..",
            "../../etc",
            "a/b",
            "a\0b",
            "%2e%2e",
            "аnonymous",
            "__markers__",
            &long,
        ] {
            assert!(
                TenantId::new(bad)
                    .unwrap_err()
                    .to_string()
                    .starts_with("tenant ID "),
                "{bad:?}"
            );
        }
        for good in ["anonymous", "a", "team-1_x", &"x".repeat(64)] {
            assert_eq!(TenantId::new(good).unwrap().as_str(), good);
        }
    }
}
