//! What this process knows of HA pairs. Times are monotonic unless they are sample times; nothing here waits.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_control::{
    ClusterState, PAIR_IDLE, PairReport, REPLICAS_MAX, Ruling, Sighting, Span, election_task, names_a_pair,
};
use koios_model::TenantId;
use koios_tenancy::Limits;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// An election drops nothing until it has been known for this long: by then all distributors that can reach a voter know
/// it, so that no two of them drop for different replicas. A connection to a voter that went silent is noticed
/// after 15 s (`koios_control`'s `SILENCE_MAX`), and another one is made after that.
pub(crate) const SETTLING: Duration = Duration::from_secs(20);

/// Most pairs of all tenants together.
const PAIRS_MAX: usize = 20_000;

/// What becomes of the samples of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the elected one.
    Elected,
    /// Samples with times in this range, both ends included, are dropped; others are taken.
    Drop { from_ms: i64, until_ms: i64 },
    /// Nothing is dropped, for this reason.
    Undecided(&'static str),
}

/// What one request brought of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Brought {
    pub(crate) cluster: String,
    pub(crate) replica: String,
    /// The newest sample time that is no later than now.
    pub(crate) newest_ms: i64,
}

/// All pairs that send to this process.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    tenants: Mutex<BTreeMap<TenantId, TenantPairs>>,
    /// Woken when there is something that the leader should hear of at once.
    news: Notify,
}

#[derive(Debug, Default)]
struct TenantPairs {
    pairs: BTreeMap<String, Pair>,
    failover: Duration,
    pairs_max: usize,
    /// Whether it has been logged that there are too many.
    full: bool,
}

#[derive(Debug)]
struct Pair {
    task: String,
    /// The newest state that was looked at: requests may end out of order.
    version: u64,
    election: Option<Election>,
    /// What this process saw itself.
    seen: BTreeMap<String, Seen>,
    /// What the leader says of the elected one.
    heard: Option<Heard>,
    /// The leader knows another election than this process, which drops nothing until it knows it, too.
    superseded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    span: Option<Span>,
    lost_ms: Option<i64>,
}

#[derive(Debug)]
struct Election {
    replica: String,
    epoch: u64,
    known_since: Duration,
    /// What this process saw of it since it settled.
    span: Option<Span>,
    /// Up to here it sent samples that were not taken and will not come again.
    lost_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Duration,
    newest_ms: i64,
}

impl Tracker {
    /// Says what becomes of a replica's samples at `now`.
    pub(crate) fn decide(
        &self,
        (tenant, limits): (&TenantId, &Limits),
        (cluster, replica): (&str, &str),
        state: &ClusterState,
        now: Duration,
    ) -> Verdict {
        if !names_a_pair(cluster) || !names_a_pair(replica) {
            return Verdict::Undecided("invalid_label");
        }
        let mut tenants = self.tenants.lock();
        let known = tenants.get_mut(tenant).and_then(|t| t.pairs.get_mut(cluster));
        if let Some(pair) = known {
            pair.follow(state, now);
            return pair.verdict(replica, limits.ha_failover_timeout, now);
        }
        if !has_room(&mut tenants, tenant, limits) {
            return Verdict::Undecided("too_many_pairs");
        }
        // It is remembered when the request is acknowledged.
        let mut pair = Pair::new(tenant, cluster);
        pair.follow(state, now);
        pair.verdict(replica, limits.ha_failover_timeout, now)
    }

    /// Takes down what an acknowledged request brought.
    pub(crate) fn note(
        &self,
        (tenant, limits): (&TenantId, &Limits),
        brought: &[Brought],
        state: &ClusterState,
        now: Duration,
    ) {
        if brought.is_empty() {
            // Most requests bring nothing of pairs, and none do where pairs are not wanted: they do not wait for others.
            return;
        }
        let mut news = false;
        let mut tenants = self.tenants.lock();
        for one in brought {
            if !names_a_pair(&one.cluster) || !names_a_pair(&one.replica) {
                continue;
            }
            let known = tenants
                .get(tenant)
                .is_some_and(|t| t.pairs.contains_key(&one.cluster));
            if !known && !has_room(&mut tenants, tenant, limits) {
                continue;
            }
            let of_tenant = tenants.entry(tenant.clone()).or_default();
            of_tenant.failover = limits.ha_failover_timeout;
            of_tenant.pairs_max = limits.ha_max_clusters;
            let pair = of_tenant.pairs.entry(one.cluster.clone());
            let pair = pair.or_insert_with(|| Pair::new(tenant, &one.cluster));
            pair.follow(state, now);
            news |= pair.note(one, millis(limits.ha_failover_timeout), now);
        }
        drop(tenants);
        if news {
            self.news.notify_one();
        }
    }

    /// Takes down what a request would have brought whose sender does not send it again: of the elected replica nothing so
    /// old counts as brought, so that others' copies are taken.
    pub(crate) fn lose(&self, tenant: &TenantId, lost: &[Brought], state: &ClusterState, now: Duration) {
        if lost.is_empty() {
            return;
        }
        let mut tenants = self.tenants.lock();
        let Some(of_tenant) = tenants.get_mut(tenant) else {
            return;
        };
        for one in lost {
            if let Some(pair) = of_tenant.pairs.get_mut(&one.cluster) {
                pair.follow(state, now);
                pair.lose(one);
            }
        }
    }

    /// Waits until a replica comes that the leader has not heard of.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// What the leader is to hear: every pair that was seen within twice its timeout.
    pub(crate) fn report(&self, now: Duration) -> Vec<PairReport> {
        let tenants = self.tenants.lock();
        let reports = tenants.iter().flat_map(|(tenant, of_tenant)| {
            let pairs = of_tenant.pairs.iter();
            pairs.filter_map(|(cluster, pair)| {
                let replicas = pair.sightings(of_tenant.failover * 2, now);
                (!replicas.is_empty()).then(|| PairReport {
                    tenant: tenant.clone(),
                    cluster: cluster.clone(),
                    failover_ms: u64::try_from(millis(of_tenant.failover)).unwrap_or(0),
                    pairs_max: of_tenant.pairs_max as u64,
                    epoch: pair.election.as_ref().map_or(0, |e| e.epoch),
                    replicas,
                })
            })
        });
        reports.collect()
    }

    /// Takes down what the leader answered to a report that was made at `asked_at`.
    pub(crate) fn learn(&self, report: &PairReport, ruling: &Ruling, asked_at: Duration) {
        let mut tenants = self.tenants.lock();
        let of_tenant = tenants.get_mut(&report.tenant);
        let Some(pair) = of_tenant.and_then(|t| t.pairs.get_mut(&report.cluster)) else {
            return;
        };
        let Some(election) = &pair.election else { return };
        let same = ruling.elected.as_ref() == Some(&election.replica) && ruling.epoch == election.epoch;
        // Of an election that this process does not know yet it learns by the state; until then it must not drop for
        // another one.
        pair.superseded = !same;
        if let Some(sighting) = ruling.sighting.as_ref().filter(|_| same) {
            let at = asked_at.checked_sub(Duration::from_millis(sighting.age_ms));
            pair.heard = at.map(|at| Heard {
                at,
                span: sighting.span,
                lost_ms: sighting.lost_ms,
            });
        }
    }

    /// Forgets pairs that nobody sends for. Gives how many there are.
    pub(crate) fn sweep(&self, now: Duration) -> usize {
        let mut tenants = self.tenants.lock();
        for of_tenant in tenants.values_mut() {
            let recent = |seen: &Seen| now.saturating_sub(seen.at) <= PAIR_IDLE;
            of_tenant.pairs.retain(|_, pair| {
                pair.seen.retain(|_, seen| recent(seen));
                !pair.seen.is_empty()
            });
            of_tenant.full &= of_tenant.pairs.len() >= of_tenant.pairs_max;
        }
        tenants.retain(|_, of_tenant| !of_tenant.pairs.is_empty());
        tenants.values().map(|t| t.pairs.len()).sum()
    }
}

/// Whether a further pair of the tenant may be remembered; what lacks room is logged once.
fn has_room(tenants: &mut BTreeMap<TenantId, TenantPairs>, tenant: &TenantId, limits: &Limits) -> bool {
    let all: usize = tenants.values().map(|t| t.pairs.len()).sum();
    let Some(of_tenant) = tenants.get_mut(tenant) else {
        return all < PAIRS_MAX;
    };
    if of_tenant.pairs.len() < limits.ha_max_clusters && all < PAIRS_MAX {
        return true;
    }
    if !std::mem::replace(&mut of_tenant.full, true) {
        let (limit, pairs) = (limits.ha_max_clusters, of_tenant.pairs.len());
        tracing::warn!(
            %tenant, pairs, limit,
            "too many HA pairs: of further ones the samples of all replicas are kept; raise limits.ha-max-clusters"
        );
    }
    false
}

impl Pair {
    fn new(tenant: &TenantId, cluster: &str) -> Self {
        Self {
            task: election_task(tenant, cluster),
            version: 0,
            election: None,
            seen: BTreeMap::new(),
            heard: None,
            superseded: false,
        }
    }

    /// Goes on with the election that the state has.
    fn follow(&mut self, state: &ClusterState, now: Duration) {
        if state.version < self.version {
            return;
        }
        self.version = state.version;
        let current = state.assignments.get(&self.task);
        let known = self.election.as_ref().map(|e| (e.replica.as_str(), e.epoch));
        if known == current.map(|a| (a.holder.as_str(), a.epoch)) {
            return;
        }
        self.heard = None;
        self.superseded = false;
        self.election = current.map(|a| Election {
            replica: a.holder.clone(),
            epoch: a.epoch,
            known_since: now,
            span: None,
            lost_ms: None,
        });
    }

    fn verdict(&self, replica: &str, failover: Duration, now: Duration) -> Verdict {
        let Some(election) = &self.election else {
            return Verdict::Undecided("no_election");
        };
        if election.replica == replica {
            return Verdict::Elected;
        }
        if self.superseded || now.saturating_sub(election.known_since) < SETTLING {
            return Verdict::Undecided("new_election");
        }
        let own = self.seen.get(&election.replica).map(|seen| seen.at);
        let at = own.max(self.heard.map(|heard| heard.at));
        if at.is_none_or(|at| now.saturating_sub(at) > failover) {
            return Verdict::Undecided("elected_away");
        }
        let gap_ms = millis(failover);
        let covered = match (election.span, self.heard.and_then(|heard| heard.span)) {
            (Some(own), Some(heard)) => Some(own.united(heard, gap_ms)),
            (one, other) => one.or(other),
        };
        let lost_ms = election.lost_ms.max(self.heard.and_then(|heard| heard.lost_ms));
        let Some(covered) = covered.and_then(|span| span.after(lost_ms)) else {
            return Verdict::Undecided("elected_away");
        };
        Verdict::Drop {
            from_ms: covered.from_ms,
            until_ms: covered.newest_ms.saturating_add(gap_ms),
        }
    }

    fn lose(&mut self, lost: &Brought) {
        let elected = self.election.as_mut();
        if let Some(election) = elected.filter(|e| e.replica == lost.replica) {
            election.lost_ms = election.lost_ms.max(Some(lost.newest_ms));
        }
    }

    /// Gives whether the leader should hear of it at once.
    fn note(&mut self, brought: &Brought, gap_ms: i64, now: Duration) -> bool {
        let settled =
            |e: &&mut Election| e.replica == brought.replica && now.saturating_sub(e.known_since) >= SETTLING;
        if let Some(election) = self.election.as_mut().filter(settled) {
            let t = brought.newest_ms;
            let span = election.span.unwrap_or_else(|| Span::at(t));
            election.span = Some(span.extended(t, gap_ms));
        }
        let known = self.seen.contains_key(&brought.replica);
        if !known {
            self.make_room();
        }
        let seen = self.seen.entry(brought.replica.clone()).or_insert(Seen {
            at: now,
            newest_ms: brought.newest_ms,
        });
        seen.at = now;
        seen.newest_ms = seen.newest_ms.max(brought.newest_ms);
        !known
    }

    /// Drops the replica that was not seen for the longest time, but never the elected one.
    fn make_room(&mut self) {
        let elected = self.election.as_ref().map(|e| e.replica.as_str());
        if self.seen.len() < REPLICAS_MAX {
            return;
        }
        let others = self
            .seen
            .iter()
            .filter(|(name, _)| Some(name.as_str()) != elected);
        let oldest = others
            .min_by_key(|(_, seen)| seen.at)
            .map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            self.seen.remove(&oldest);
        }
    }

    fn sightings(&self, within: Duration, now: Duration) -> Vec<Sighting> {
        let lately = self
            .seen
            .iter()
            .filter(|(_, seen)| now.saturating_sub(seen.at) <= within);
        let sighting = |(replica, seen): (&String, &Seen)| {
            let elected = self.election.as_ref().filter(|e| e.replica == *replica);
            Sighting {
                replica: replica.clone(),
                newest_ms: seen.newest_ms,
                age_ms: u64::try_from(millis(now.saturating_sub(seen.at))).unwrap_or(0),
                span: elected.and_then(|e| e.span),
                lost_ms: elected.and_then(|e| e.lost_ms),
            }
        };
        lately.map(sighting).collect()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "tracker_test.rs"]
mod tests;
