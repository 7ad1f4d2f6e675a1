//! Says when processes of the cluster are of different versions: what a newer one writes an older one may not read.

use std::collections::BTreeMap;

use koios_control::{ClusterState, Role, StateHandle};
use koios_server::Metrics;

/// This process' version, as it registers with it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Members of other versions than one's own: what they are of, by name.
type Others = BTreeMap<String, String>;

fn others(state: &ClusterState, own: &str) -> Others {
    let members = state.members.values().filter(|m| m.version != own);
    members.map(|m| (m.name.clone(), m.version.clone())).collect()
}

/// Whether a process that takes writes is of another version than one that stores them: as long as it lasts, writes with
/// what one of them does not know are refused.
fn divides_writes(state: &ClusterState) -> bool {
    let versions = |roles: [Role; 2]| {
        let members = state.members.values().filter(move |m| roles.contains(&m.role));
        members.map(|m| m.version.as_str())
    };
    let stores = || versions([Role::Ingester, Role::All]);
    versions([Role::Distributor, Role::All]).any(|takes| stores().any(|stores| stores != takes))
}

/// Tells the log and a gauge whenever the versions of the registered members change.
pub(crate) async fn follow(mut state: StateHandle, metrics: Metrics) {
    let gauge = metrics.gauge(
        "koios_members_of_other_versions",
        "Registered members of another version than this process",
    );
    let mut told = Others::new();
    loop {
        let current = state.current();
        let now = others(&current, VERSION);
        gauge.set(i64::try_from(now.len()).unwrap_or(i64::MAX));
        if now != told {
            tell(&now, divides_writes(&current));
            told = now;
        }
        state.changed().await;
    }
}

fn tell(others: &Others, divides_writes: bool) {
    if others.is_empty() {
        tracing::info!(
            version = VERSION,
            "all members of the cluster are of this version"
        );
    } else if divides_writes {
        tracing::warn!(
            version = VERSION,
            ?others,
            "members are of other versions, distributors and ingesters among them: end the upgrade, ingesters first; until then writes \
             with what an ingester does not know are refused with 503"
        );
    } else {
        tracing::warn!(
            version = VERSION,
            ?others,
            "members are of other versions: end the upgrade"
        );
    }
}

#[cfg(test)]
mod tests {
    use koios_control::{Incarnation, Member};

    use super::*;

    fn state(members: &[(&str, Role, &str)]) -> ClusterState {
        let member = |(name, role, version): &(&str, Role, &str)| Member {
            name: (*name).to_owned(),
            role: *role,
            zone: String::new(),
            grpc_addr: String::new(),
            http_addr: String::new(),
            incarnation: Incarnation(1),
            version: (*version).to_owned(),
        };
        ClusterState {
            version: 1,
            members: members.iter().map(|m| (m.0.to_owned(), member(m))).collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn i16_members_of_other_versions_are_named() {
        let same = state(&[("a", Role::Ingester, VERSION), ("d", Role::Distributor, VERSION)]);
        assert_eq!((others(&same, VERSION).len(), divides_writes(&same)), (0, false));
        let newer = state(&[("a", Role::Ingester, "0.0.1"), ("d", Role::Distributor, VERSION)]);
        assert_eq!(
            others(&newer, VERSION),
            Others::from([("a".to_owned(), "0.0.1".to_owned())])
        );
        assert!(divides_writes(&newer));
        let reads = state(&[
            ("a", Role::Ingester, VERSION),
            ("d", Role::Distributor, VERSION),
            ("s", Role::Store, "0.0.1"),
        ]);
        assert_eq!(
            (others(&reads, VERSION).len(), divides_writes(&reads)),
            (1, false)
        );
    }

    #[tokio::test]
    async fn i16_the_gauge_follows_the_upgrade() {
        let metrics = Metrics::new();
        let handle = StateHandle::new(state(&[
            ("a", Role::Ingester, "0.0.1"),
            ("b", Role::Ingester, VERSION),
        ]));
        let following = follow(handle.clone(), metrics.clone());
        let upgrading = async {
            let shows = |n: u32| {
                metrics
                    .encode()
                    .contains(&format!("koios_members_of_other_versions {n}\n"))
            };
            while !shows(1) {
                tokio::task::yield_now().await;
            }
            let done = state(&[("a", Role::Ingester, VERSION), ("b", Role::Ingester, VERSION)]);
            assert!(handle.offer(ClusterState { version: 2, ..done }));
            while !shows(0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = following => panic!("it ends"),
            () = upgrading => {}
        }
    }
}
