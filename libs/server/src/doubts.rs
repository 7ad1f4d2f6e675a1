//! Settings that are allowed and hardly meant.

use koios_tenancy::Limits;

use crate::settings::Settings;

impl Settings {
    /// What the log warns of at the start: a `store.deletion-delay` that is shorter than a query may take.
    pub fn doubts(&self) -> Vec<String> {
        let of_all = ("limits.query-timeout".to_owned(), &self.limits);
        let own = self.overrides.iter();
        let own = own.map(|(tenant, limits)| (format!("overrides.{tenant}.query-timeout"), limits));
        let delay = self.store.deletion_delay;
        let longer = std::iter::once(of_all)
            .chain(own)
            .filter(|(_, limits)| limits.query_timeout > delay);
        let doubt = |(key, limits): (String, &Limits)| {
            format!(
                "store.deletion-delay is {delay:?}, shorter than {key}, {:?}: the bytes of blocks that were merged go while queries still read them, \
                 which fail then",
                limits.query_timeout
            )
        };
        longer.map(doubt).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use koios_model::TenantId;

    use super::*;

    #[test]
    fn warns_of_bytes_that_go_while_queries_read_them() {
        let mut settings = Settings::default();
        assert_eq!(settings.doubts(), Vec::<String>::new());
        let own = Limits {
            query_timeout: Duration::from_secs(7200),
            ..Limits::default()
        };
        settings.overrides.insert(TenantId::new("team-a").unwrap(), own);
        let doubts = settings.doubts();
        assert_eq!(doubts.len(), 1);
        let start = "store.deletion-delay is 3600s, shorter than overrides.team-a.query-timeout, 7200s: ";
        assert!(doubts[0].starts_with(start), "{doubts:?}");
        settings.store.deletion_delay = Duration::from_secs(1);
        assert_eq!(settings.doubts().len(), 2);
    }
}
