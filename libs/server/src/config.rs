//! One table of settings, from which come flags, environment variables, file keys, `--help` and the reference page.
//!
//! A setting `http.listen` is the flag `--http.listen`, the variable `KOIOS_HTTP_LISTEN` and the file key
//! `http: {listen: …}`. Later wins: default < file < environment < flag.

mod docs;
mod rules;
mod suggest;
mod table;
mod value;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use koios_model::TenantId;
use koios_tenancy::RetentionLimits;

pub use docs::reference_page;
pub use table::{Setting, Target, all_settings};
pub use value::{format_bytes, format_duration, parse_bytes, parse_duration};

use crate::settings::{DisarmedRule, Settings};
use suggest::nearest_within;

/// Why a process cannot start with what it was told. The binary prints it and exits with 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot read configuration: {reason}")]
    Unreadable {
        /// Its path.
        file: String,
        /// The system's words.
        reason: String,
    },
    /// The file is not YAML of the right shape.
    #[error("{file}:{line}: {reason}")]
    Syntax {
        /// Its path.
        file: String,
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A key that no setting has.
    #[error("{file}:{line}: unknown key {key:?}{}{}", did_you_mean(.suggestion), in_section(.section))]
    UnknownKey {
        /// The file's path.
        file: String,
        /// From 1.
        line: u64,
        /// The key as written.
        key: String,
        /// The nearest key that exists.
        suggestion: Option<String>,
        /// The section it stands in; empty at the top.
        section: String,
    },
    /// A value that its setting does not take.
    #[error("{origin}: invalid value {value:?} for {key}: {reason}")]
    Value {
        /// `config.yaml:12`, `--http.listen` or `KOIOS_HTTP_LISTEN`.
        origin: String,
        /// The setting.
        key: String,
        /// As given.
        value: String,
        /// What it must be.
        reason: String,
    },
    /// Values that contradict each other.
    #[error("contradictory configuration: {0}")]
    Contradiction(String),
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|s| format!(" (did you mean {s:?}?)"))
        .unwrap_or_default()
}

fn in_section(section: &str) -> String {
    if section.is_empty() {
        String::new()
    } else {
        format!(" in section {section:?}")
    }
}

/// Where values come from beside the command line; the binary passes the real ones.
pub struct Sources<'a> {
    /// Reads an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a file.
    pub read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sources")
    }
}

/// The name of the flag that names the file.
pub const CONFIG_FLAG: &str = "config";

/// The name of the variable that names the file.
const CONFIG_VARIABLE: &str = "KOIOS_CONFIG";

/// The flags of a target, `--config` among them, grouped and with defaults in their help.
pub fn flags(target: Target) -> Vec<clap::Arg> {
    let config = clap::Arg::new(CONFIG_FLAG)
        .long(CONFIG_FLAG)
        .env(CONFIG_VARIABLE)
        .value_name("FILE")
        .help_heading("General")
        .help("YAML file with settings; a flag --a.b is the key `b` in the section `a`");
    let defaults = Settings::default();
    let settings = all_settings()
        .filter(|s| s.applies_to(target))
        .map(|s| s.flag(&defaults));
    std::iter::once(config).chain(settings).collect()
}

/// What the log warns of at the start: environment variables that no setting has, where one has nearly the same. Others that begin with
/// `KOIOS_` may be somebody else's, as those that Kubernetes sets for a service of this name.
pub fn misspelt_variables<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let of_settings = all_settings().map(|s| s.variable());
    let known: Vec<String> = of_settings.chain([CONFIG_VARIABLE.to_owned()]).collect();
    let is_unknown = |name: &&str| name.starts_with("KOIOS_") && !known.iter().any(|k| k == name);
    let unknown = names.into_iter().filter(is_unknown);
    let doubts = unknown.filter_map(|name| {
        let meant = nearest_within(name, known.iter().map(String::as_str), 2)?;
        Some(format!(
            "the environment variable {name} is not read: did you mean {meant}?"
        ))
    });
    doubts.collect()
}

/// Collects the settings from file, environment and flags, and validates them.
///
/// A file may hold settings of every target, so that one file serves all processes.
///
/// # Errors
/// [`ConfigError`] naming the place of the first thing that is wrong.
pub fn load(matches: &clap::ArgMatches, sources: &Sources<'_>) -> Result<Settings, ConfigError> {
    let settings = collect(matches, sources)?;
    settings.validate().map_err(ConfigError::Contradiction)?;
    Ok(settings)
}

/// As [`load`], but for what versions before accepted and this one does not: an upgrade must not keep a process from starting. What that
/// became is to be warned of.
///
/// # Errors
/// As [`load`].
pub fn load_at_start(
    matches: &clap::ArgMatches,
    sources: &Sources<'_>,
) -> Result<(Settings, Vec<DisarmedRule>), ConfigError> {
    let mut settings = collect(matches, sources)?;
    let disarmed = settings.disarm_retention();
    settings.validate().map_err(ConfigError::Contradiction)?;
    Ok((settings, disarmed))
}

fn collect(matches: &clap::ArgMatches, sources: &Sources<'_>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    let path = matches.try_get_one::<String>(CONFIG_FLAG).ok().flatten();
    let file = path
        .map(|path| read_file(&PathBuf::from(path), sources))
        .transpose()?;
    if let Some(file) = &file {
        file.apply_to_all(&mut settings)?;
    }
    for s in all_settings() {
        let variable = s.variable();
        if let Some(value) = (sources.env)(&variable) {
            set(&mut settings, s, &variable, &value)?;
        }
    }
    for s in all_settings() {
        if let Some(value) = matches.try_get_one::<String>(s.key).ok().flatten() {
            set(&mut settings, s, &format!("--{}", s.key), value)?;
        }
    }
    // What a tenant has of its own stands above what all have, wherever that was said.
    if let Some(file) = &file {
        file.apply_to_tenants(&mut settings)?;
    }
    Ok(settings)
}

/// What a file says.
struct File {
    name: String,
    entries: Vec<yaml::Entry>,
}

fn read_file(path: &Path, sources: &Sources<'_>) -> Result<File, ConfigError> {
    let name = path.display().to_string();
    let text = (sources.read_file)(path).map_err(|e| ConfigError::Unreadable {
        file: name.clone(),
        reason: e.to_string(),
    })?;
    let entries = yaml::read(&name, &text)?;
    Ok(File { name, entries })
}

/// Applies a file's text. Exceptions by tenant start from the file's own `limits`, wherever they stand in it.
///
/// # Errors
/// [`ConfigError`] naming file and line.
pub fn apply_yaml(settings: &mut Settings, file: &str, text: &str) -> Result<(), ConfigError> {
    let file = File {
        name: file.to_owned(),
        entries: yaml::read(file, text)?,
    };
    file.apply_to_all(settings)?;
    file.apply_to_tenants(settings)
}

impl File {
    fn origin(&self, entry: &yaml::Entry) -> String {
        format!("{}:{}", self.name, entry.line)
    }

    fn apply_to_all(&self, settings: &mut Settings) -> Result<(), ConfigError> {
        for e in self.entries.iter().filter(|e| e.tenant.is_none()) {
            set(settings, e.setting, &self.origin(e), &e.value)?;
        }
        Ok(())
    }

    /// Exceptions start from the limits of all, but for retention: of that it matters who said it.
    fn apply_to_tenants(&self, settings: &mut Settings) -> Result<(), ConfigError> {
        let mut of_tenants = settings.clone();
        of_tenants.limits.retention = RetentionLimits::default();
        let mut overrides: BTreeMap<TenantId, Settings> = BTreeMap::new();
        for e in &self.entries {
            let Some(tenant) = &e.tenant else { continue };
            let tenant = TenantId::new(tenant).map_err(|error| ConfigError::Value {
                origin: self.origin(e),
                key: "overrides".to_owned(),
                value: tenant.clone(),
                reason: error.to_string(),
            })?;
            let of_tenant = overrides.entry(tenant).or_insert_with(|| of_tenants.clone());
            set(of_tenant, e.setting, &self.origin(e), &e.value)?;
        }
        let limits = overrides.into_iter().map(|(tenant, s)| (tenant, s.limits));
        settings.overrides.extend(limits);
        Ok(())
    }
}

fn set(settings: &mut Settings, setting: &Setting, origin: &str, value: &str) -> Result<(), ConfigError> {
    (setting.set)(settings, value).map_err(|reason| ConfigError::Value {
        origin: origin.to_owned(),
        key: setting.key.to_owned(),
        value: if setting.secret {
            "<hidden>".to_owned()
        } else {
            value.to_owned()
        },
        reason,
    })?;
    settings.given.insert(setting.key);
    Ok(())
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
