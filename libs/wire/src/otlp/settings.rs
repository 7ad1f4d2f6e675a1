//! How OTLP becomes Prometheus' model.

use std::str::FromStr;

/// What becomes of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TranslationStrategy {
    /// Characters that PromQL needs quotes for become `_`; unit and type are appended.
    #[default]
    UnderscoreEscapingWithSuffixes,
    /// Characters that PromQL needs quotes for become `_`.
    UnderscoreEscapingWithoutSuffixes,
    /// Names keep their characters; unit and type are appended.
    NoUtf8EscapingWithSuffixes,
    /// Names stay as they are.
    NoTranslation,
}

impl TranslationStrategy {
    const ALL: [Self; 4] = [
        Self::UnderscoreEscapingWithSuffixes,
        Self::UnderscoreEscapingWithoutSuffixes,
        Self::NoUtf8EscapingWithSuffixes,
        Self::NoTranslation,
    ];

    /// Prometheus' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnderscoreEscapingWithSuffixes => "UnderscoreEscapingWithSuffixes",
            Self::UnderscoreEscapingWithoutSuffixes => "UnderscoreEscapingWithoutSuffixes",
            Self::NoUtf8EscapingWithSuffixes => "NoUTF8EscapingWithSuffixes",
            Self::NoTranslation => "NoTranslation",
        }
    }

    pub(super) fn escapes(self) -> bool {
        matches!(
            self,
            Self::UnderscoreEscapingWithSuffixes | Self::UnderscoreEscapingWithoutSuffixes
        )
    }

    pub(super) fn adds_suffixes(self) -> bool {
        matches!(
            self,
            Self::UnderscoreEscapingWithSuffixes | Self::NoUtf8EscapingWithSuffixes
        )
    }
}

impl FromStr for TranslationStrategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str);
            format!("must be one of {}", all.join(", "))
        })
    }
}

/// A tenant's choices; the defaults are Prometheus'.
///
/// **Source**: Prometheus `config/config.go` `OTLPConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What becomes of names.
    pub translation_strategy: TranslationStrategy,
    /// Resource attributes that become labels of every series.
    pub promote_resource_attributes: Vec<String>,
    /// Whether all resource attributes do.
    pub promote_all_resource_attributes: bool,
    /// Which do not when all do.
    pub ignore_resource_attributes: Vec<String>,
    /// Whether `target_info` also has the attributes that `job` and `instance` are made of.
    pub keep_identifying_resource_attributes: bool,
    /// Whether explicit histograms become native ones with custom buckets instead of classic ones.
    pub convert_histograms_to_nhcb: bool,
    /// Whether name, version, schema and attributes of the scope become labels.
    pub promote_scope_metadata: bool,
    /// Whether label names that begin with one `_` get `key` before it. Only where characters are escaped.
    pub label_name_underscore_sanitization: bool,
    /// Whether several `_` in a row stay in label names. Only where characters are escaped.
    pub label_name_preserve_multiple_underscores: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            translation_strategy: TranslationStrategy::default(),
            promote_resource_attributes: Vec::new(),
            promote_all_resource_attributes: false,
            ignore_resource_attributes: Vec::new(),
            keep_identifying_resource_attributes: false,
            convert_histograms_to_nhcb: false,
            promote_scope_metadata: false,
            label_name_underscore_sanitization: true,
            label_name_preserve_multiple_underscores: true,
        }
    }
}

impl Settings {
    pub(super) fn promotes(&self, attribute: &[u8]) -> bool {
        let among = |names: &[String]| names.iter().any(|name| name.as_bytes() == attribute);
        if self.promote_all_resource_attributes {
            !among(&self.ignore_resource_attributes)
        } else {
            among(&self.promote_resource_attributes)
        }
    }
}
