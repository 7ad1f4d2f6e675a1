//! The table: every setting once, in a module for each heading.

use crate::settings::Settings;

/// What a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Everything in one process.
    All,
    /// Receives writes.
    Distributor,
    /// Keeps recent samples.
    Ingester,
    /// Answers queries.
    Querier,
    /// Serves and tends blocks.
    Store,
    /// Votes on the cluster's state.
    Control,
}

impl Target {
    /// Its name, as on the command line; `all` for everything.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Distributor => "distributor",
            Self::Ingester => "ingester",
            Self::Querier => "querier",
            Self::Store => "store",
            Self::Control => "control",
        }
    }
}

/// One setting.
pub struct Setting {
    /// Dotted name.
    pub key: &'static str,
    /// The heading it stands under.
    pub group: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// Its meaning, as a sentence without a final dot.
    pub help: &'static str,
    /// Who reads it; empty for everyone. All-in-one reads all.
    pub targets: &'static [Target],
    /// Whether its value must not be shown.
    pub secret: bool,
    pub(super) set: fn(&mut Settings, &str) -> Result<(), String>,
    pub(super) show: fn(&Settings) -> String,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Setting").field(&self.key).finish()
    }
}

impl Setting {
    /// Whether a target reads it.
    pub fn applies_to(&self, target: Target) -> bool {
        target == Target::All || self.targets.is_empty() || self.targets.contains(&target)
    }

    /// The environment variable: `KOIOS_` and the key in capitals with underscores.
    pub fn variable(&self) -> String {
        format!("KOIOS_{}", self.key.replace(['.', '-'], "_").to_uppercase())
    }

    /// Its value in `settings`, as text that the flag would take.
    pub fn value_in(&self, settings: &Settings) -> String {
        (self.show)(settings)
    }

    pub(super) fn flag(&self, defaults: &Settings) -> clap::Arg {
        let default = (self.show)(defaults);
        let help = if default.is_empty() {
            self.help.to_owned()
        } else {
            format!("{} [default: {default}]", self.help)
        };
        clap::Arg::new(self.key)
            .long(self.key)
            .value_name(self.kind)
            .help_heading(self.group)
            .allow_hyphen_values(true)
            .help(help)
    }
}

// Rows, for the modules below: each has a `HEADING`.

/// A row whose type has one textual form.
macro_rules! setting {
    ($key:literal, $ty:ty, $($field:ident).+, $targets:expr, $help:expr) => {
        $crate::config::table::Setting {
            key: $key,
            group: HEADING,
            kind: <$ty as $crate::config::value::Value>::KIND,
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| { s.$($field).+ = <$ty as $crate::config::value::Value>::parse(text)?; Ok(()) },
            show: |s| <$ty as $crate::config::value::Value>::show(&s.$($field).+),
        }
    };
}

/// A row of bytes: a number that is written as a size.
macro_rules! bytes {
    ($key:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        $crate::config::table::Setting {
            key: $key,
            group: HEADING,
            kind: "SIZE",
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| {
                s.$($field).+ = $crate::config::value::parse_bytes(text)?
                    .try_into()
                    .map_err(|_| "larger than this machine can address".to_owned())?;
                Ok(())
            },
            show: |s| $crate::config::value::format_bytes(s.$($field).+ as u64),
        }
    };
}

/// A row of a text that is never shown.
macro_rules! secret {
    ($key:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        $crate::config::table::Setting {
            key: $key,
            group: HEADING,
            kind: "TEXT",
            help: $help,
            targets: $targets,
            secret: true,
            set: |s, text| { text.clone_into(&mut s.$($field).+); Ok(()) },
            show: |s| match s.$($field).+.is_empty() {
                true => String::new(),
                false => "<hidden>".to_owned(),
            },
        }
    };
}

/// A row of names.
macro_rules! names {
    ($key:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        $crate::config::table::Setting {
            key: $key,
            group: HEADING,
            kind: "NAME,…",
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| { s.$($field).+ = $crate::config::value::parse_names(text); Ok(()) },
            show: |s| s.$($field).+.join(","),
        }
    };
}

/// A row of one address.
macro_rules! address {
    ($key:literal, $($field:ident).+, $help:expr) => {
        $crate::config::table::Setting {
            key: $key,
            group: HEADING,
            kind: "HOST:PORT",
            help: $help,
            targets: &[],
            secret: false,
            set: |s, text| { $crate::config::value::check_address(text)?; s.$($field).+ = text.to_owned(); Ok(()) },
            show: |s| s.$($field).+.clone(),
        }
    };
}

mod cluster;
mod general;
mod listeners;
mod object_storage;
mod observability;
mod opentelemetry;
mod pairs;
mod queries;
mod retention;
mod storage;
mod writes;

const WRITE: &[Target] = &[Target::Distributor];
const READ: &[Target] = &[Target::Querier];
const BUCKET: &[Target] = &[Target::Ingester, Target::Querier, Target::Store, Target::Control];
const VOTE: &[Target] = &[Target::Ingester, Target::Control];
const HEAD: &[Target] = &[Target::Ingester];
const WRITE_AND_HEAD: &[Target] = &[Target::Distributor, Target::Ingester];
const STORE: &[Target] = &[Target::Store];

/// Every setting, by heading.
const BY_HEADING: [&[Setting]; 11] = [
    general::SETTINGS,
    listeners::SETTINGS,
    cluster::SETTINGS,
    storage::SETTINGS,
    object_storage::SETTINGS,
    observability::SETTINGS,
    writes::SETTINGS,
    pairs::SETTINGS,
    retention::SETTINGS,
    opentelemetry::SETTINGS,
    queries::SETTINGS,
];

/// Every setting, those of a heading together.
pub fn all_settings() -> impl Iterator<Item = &'static Setting> {
    BY_HEADING.into_iter().flatten()
}
