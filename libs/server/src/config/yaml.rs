//! The file: nested sections whose leaves are settings, read with the line of every key.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, with_deserializer_from_str};

use super::ConfigError;
use super::rules;
use super::suggest::nearest;
use super::table::{Setting, all_settings};

/// The section with exceptions by tenant.
const OVERRIDES: &str = "overrides";

/// One leaf of the file.
#[derive(Debug)]
pub(super) struct Entry {
    /// For which tenant; `None` outside of `overrides`.
    pub(super) tenant: Option<String>,
    /// The setting.
    pub(super) setting: &'static Setting,
    /// Its value as text; list items joined by commas, rules of retention by semicolons.
    pub(super) value: String,
    /// Where it stands, from 1.
    pub(super) line: u64,
}

/// Reads a file's text.
pub(super) fn read(file: &str, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let mut reader = Reader {
        file,
        entries: Vec::new(),
        refusal: None,
    };
    if text
        .lines()
        .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    {
        return Ok(reader.entries);
    }
    let result = with_deserializer_from_str(text, |de| {
        Section {
            reader: &mut reader,
            place: Place::Settings(String::new()),
        }
        .deserialize(de)
    });
    if let Some(refusal) = reader.refusal.take() {
        return Err(refusal);
    }
    result.map_err(|e| ConfigError::Syntax {
        file: file.to_owned(),
        line: e.location().map_or(1, |l| l.line()),
        reason: plain(&e),
    })?;
    Ok(reader.entries)
}

/// The error's own words, without the excerpt that follows them. Of a key that stands twice they are for programmers.
fn plain(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
        return match key {
            Some(key) => format!("key {key:?} twice: one of them must go"),
            None => "a key twice: one of them must go".to_owned(),
        };
    }
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

struct Reader<'a> {
    file: &'a str,
    entries: Vec<Entry>,
    /// What was refused, kept apart because the YAML error type cannot carry it.
    refusal: Option<ConfigError>,
}

/// Where in the file a map stands.
#[derive(Clone)]
enum Place {
    /// Below this prefix of keys, empty or ending in a dot.
    Settings(String),
    /// In `overrides`: keys are tenants.
    Tenants,
    /// In `overrides.<tenant>`: keys are those of `limits`.
    Tenant(String),
}

impl Place {
    fn prefix(&self) -> &str {
        match self {
            Self::Settings(prefix) => prefix,
            Self::Tenants => "",
            Self::Tenant(_) => "limits.",
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Settings(prefix) => prefix.trim_end_matches('.').to_owned(),
            Self::Tenants => OVERRIDES.to_owned(),
            Self::Tenant(tenant) => format!("{OVERRIDES}.{tenant}"),
        }
    }
}

/// What a key leads to.
enum Step {
    Leaf(&'static Setting),
    Into(Place),
    Unknown,
}

impl Place {
    fn step(&self, key: &str) -> Step {
        if let Self::Tenants = self {
            return Step::Into(Self::Tenant(key.to_owned()));
        }
        let full = format!("{}{key}", self.prefix());
        if let Some(setting) = all_settings().find(|s| s.key == full) {
            return Step::Leaf(setting);
        }
        match self {
            Self::Settings(prefix) if prefix.is_empty() && key == OVERRIDES => Step::Into(Self::Tenants),
            Self::Settings(_) => {
                let section = format!("{full}.");
                if all_settings().any(|s| s.key.starts_with(&section)) {
                    Step::Into(Self::Settings(section))
                } else {
                    Step::Unknown
                }
            }
            _ => Step::Unknown,
        }
    }

    /// The nearest key: among its neighbours, else among all by their full or last name.
    fn suggestion(&self, key: &str) -> Option<String> {
        let prefix = self.prefix();
        let neighbours = all_settings()
            .filter_map(|s| s.key.strip_prefix(prefix))
            .map(|rest| rest.split('.').next().unwrap_or(rest))
            .chain((prefix.is_empty()).then_some(OVERRIDES));
        if let Some(found) = nearest(key, neighbours) {
            return Some(found.to_owned());
        }
        if !matches!(self, Self::Settings(_)) {
            return None;
        }
        let full = format!("{prefix}{key}");
        if let Some(found) = nearest(&full, all_settings().map(|s| s.key)) {
            return Some(found.to_owned());
        }
        let last = |s: &'static Setting| s.key.rsplit('.').next().unwrap_or(s.key);
        let found = nearest(key, all_settings().map(last))?;
        all_settings()
            .find(|s| last(s) == found)
            .map(|s| s.key.to_owned())
    }
}

struct Section<'a, 'r> {
    reader: &'a mut Reader<'r>,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Section<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Section<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.shown() {
            top if top.is_empty() => f.write_str("settings as `key: value`"),
            section => write!(f, "settings of {section:?} as `key: value`"),
        }
    }

    /// A section without content, `http:`.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            match self.place.step(&key.value) {
                Step::Leaf(setting) => {
                    let value = map.next_value_seed(Leaf {
                        of_nothing: if setting.kind == rules::KIND {
                            rules::NONE
                        } else {
                            ""
                        },
                    })?;
                    let tenant = match &self.place {
                        Place::Tenant(tenant) => Some(tenant.clone()),
                        _ => None,
                    };
                    self.reader.entries.push(Entry {
                        tenant,
                        setting,
                        value,
                        line,
                    });
                }
                Step::Into(place) => map.next_value_seed(Section {
                    reader: &mut *self.reader,
                    place,
                })?,
                Step::Unknown => {
                    self.reader.refusal = Some(ConfigError::UnknownKey {
                        file: self.reader.file.to_owned(),
                        line,
                        suggestion: self.place.suggestion(&key.value),
                        key: key.value,
                        section: self.place.shown(),
                    });
                    return Err(A::Error::custom("unknown key"));
                }
            }
        }
        Ok(())
    }
}

/// A value: a scalar as written, or a list of them.
struct Leaf {
    /// What a list of nothing is as text.
    of_nothing: &'static str,
}

impl<'de> DeserializeSeed<'de> for Leaf {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Leaf {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_bool<E>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_i64<E>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_u64<E>(self, v: u64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_f64<E>(self, v: f64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<String, A::Error> {
        let (mut items, mut separator): (Vec<String>, _) = (Vec::new(), ',');
        while let Some(item) = seq.next_element_seed(ItemSeed)? {
            items.push(match item {
                Item::Text(text) => text,
                Item::Rule(text) => {
                    separator = rules::SEPARATOR;
                    text
                }
            });
        }
        Ok(match items.is_empty() {
            true => self.of_nothing.to_owned(),
            false => items.join(&separator.to_string()),
        })
    }
}

/// An item of a list.
enum Item {
    Text(String),
    /// A rule of retention.
    Rule(String),
}

/// Reads an [`Item`].
struct ItemSeed;

impl<'de> DeserializeSeed<'de> for ItemSeed {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Item, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemSeed {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, or a rule with the keys \"match\" and \"retention\"")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Item, E> {
        Ok(Item::Text(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Item, E> {
        Ok(Item::Text(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Item, E> {
        Ok(Item::Text(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Item, E> {
        Ok(Item::Text(v.to_string()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Item, E> {
        Ok(Item::Text(v.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let (mut selector, mut retention) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let value = match key.as_str() {
                "match" => &mut selector,
                "retention" => &mut retention,
                key => {
                    let text =
                        format!("unknown key {key:?} of a rule, which has \"match\" and \"retention\"");
                    return Err(A::Error::custom(text));
                }
            };
            *value = Some(map.next_value_seed(Leaf { of_nothing: "" })?);
        }
        match (selector, retention) {
            (Some(selector), Some(retention)) => rules::one(&retention, &selector)
                .map(Item::Rule)
                .map_err(A::Error::custom),
            (None, _) => Err(A::Error::custom("a rule lacks the key \"match\", a selector")),
            (_, None) => Err(A::Error::custom("a rule lacks the key \"retention\", a duration")),
        }
    }
}
