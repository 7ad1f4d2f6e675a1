//! What the leader remembers of pairs, and whom it would elect. Times are monotonic; nothing here waits.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::TenantId;

use super::{PAIR_IDLE, PairReport, REPLICAS_MAX, Sighting, Span, names_a_pair};
use crate::Assignment;

/// A distributor that was heard within this time, and is silent now, is waited for before another replica is elected: it
/// may still see the elected one.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Two looks at who leads further apart than this may have missed another leader between.
pub(super) const LOOKS_APART_MAX: Duration = Duration::from_secs(2);
/// Most distributors that are remembered.
const REPORTERS_MAX: usize = 10_000;
/// Most pairs that are remembered.
const PAIRS_MAX: usize = 2 * super::ELECTIONS_MAX;

/// A pair of a tenant.
pub(super) type PairKey = (TenantId, String);

/// What is remembered since this process leads.
#[derive(Debug)]
pub(super) struct Memory {
    leading_since: Duration,
    looked_at: Duration,
    reporters: BTreeMap<String, Duration>,
    pairs: BTreeMap<PairKey, Pair>,
}

#[derive(Debug, Default)]
struct Pair {
    failover: Duration,
    /// The newest state that was looked at: reports may be taken down out of order.
    version: u64,
    replicas: BTreeMap<String, Seen>,
    /// Whose liveness `last_live` tells, by name and epoch.
    elected: (String, u64),
    /// When the elected one was last seen with samples no more than the timeout behind the others'.
    last_live: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Duration,
    newest_ms: i64,
    span: Option<Span>,
    lost_ms: Option<i64>,
}

impl Memory {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            leading_since: now,
            looked_at: now,
            reporters: BTreeMap::new(),
            pairs: BTreeMap::new(),
        }
    }

    /// Notes that this process leads at `now`. Everything is forgotten when it may not have led all the time.
    pub(super) fn look(&mut self, now: Duration) {
        if now.saturating_sub(self.looked_at) > LOOKS_APART_MAX {
            *self = Self::new(now);
        }
        self.looked_at = now;
    }

    /// Notes that a distributor speaks.
    pub(super) fn hear_of(&mut self, reporter: &str, now: Duration) {
        if self.reporters.len() < REPORTERS_MAX || self.reporters.contains_key(reporter) {
            self.reporters.insert(reporter.to_owned(), now);
        }
    }

    #[cfg(test)]
    pub(super) fn has_heard_of(&self, reporter: &str) -> bool {
        self.reporters.contains_key(reporter)
    }

    /// Takes down what a distributor says of a pair, which the state of this version has elected somebody for. False when
    /// no more pairs can be remembered.
    pub(super) fn hear(
        &mut self,
        report: &PairReport,
        (version, elected): (u64, Option<&Assignment>),
        now: Duration,
    ) -> bool {
        let key = (report.tenant.clone(), report.cluster.clone());
        if !self.pairs.contains_key(&key) && self.pairs.len() >= PAIRS_MAX {
            return false;
        }
        let leading_since = self.leading_since;
        let pair = self.pairs.entry(key).or_default();
        pair.failover = Duration::from_millis(report.failover_ms);
        if version >= pair.version {
            pair.version = version;
            pair.follow(elected, leading_since);
        }
        let gap_ms = i64::try_from(report.failover_ms).unwrap_or(i64::MAX);
        for sighting in report.replicas.iter().take(REPLICAS_MAX) {
            if names_a_pair(&sighting.replica) {
                pair.note(sighting, report.epoch, gap_ms, now);
            }
        }
        pair.note_liveness(gap_ms);
        true
    }

    /// Whom to elect now; `None` to leave all as it is.
    pub(super) fn choice(&self, key: &PairKey, now: Duration) -> Option<&str> {
        let pair = self.pairs.get(key)?;
        let (elected, epoch) = (&pair.elected.0, pair.elected.1);
        if epoch > 0 && !self.is_away(pair, now) {
            return None;
        }
        pair.best_other(elected, now)
    }

    /// Whether every distributor said so a timeout after the elected one was last seen. A new leader does not know whom it
    /// has to hear before all who would be waited for have had the time to speak.
    fn is_away(&self, pair: &Pair, now: Duration) -> bool {
        let all_known = self.leading_since + pair.failover.max(PATIENCE);
        let due = all_known.max(pair.last_live + pair.failover);
        let mut heard = self.reporters.values();
        now >= due && heard.all(|at| *at >= due || now.saturating_sub(*at) > PATIENCE)
    }

    /// When anyone saw a replica last.
    pub(super) fn sighting(&self, key: &PairKey, replica: &str, now: Duration) -> Option<Sighting> {
        let seen = self.pairs.get(key)?.replicas.get(replica)?;
        Some(Sighting {
            replica: replica.to_owned(),
            newest_ms: seen.newest_ms,
            age_ms: u64::try_from(now.saturating_sub(seen.at).as_millis()).unwrap_or(u64::MAX),
            span: seen.span.and_then(|span| span.after(seen.lost_ms)),
            lost_ms: seen.lost_ms,
        })
    }

    /// Forgets distributors and pairs that nobody speaks of any more.
    pub(super) fn sweep(&mut self, now: Duration) {
        let recent = |at: Duration| now.saturating_sub(at) <= PAIR_IDLE;
        self.reporters.retain(|_, at| recent(*at));
        self.pairs
            .retain(|_, pair| pair.replicas.values().any(|seen| recent(seen.at)));
    }

    /// Whether this process has led for so long that who was not heard of is idle.
    pub(super) fn knows_who_is_idle(&self, now: Duration) -> bool {
        now.saturating_sub(self.leading_since) > PAIR_IDLE
    }

    /// Whether a pair is remembered.
    pub(super) fn knows(&self, key: &PairKey) -> bool {
        self.pairs.contains_key(key)
    }
}

impl Pair {
    /// Starts anew with another election: its replica counts as live from then on.
    fn follow(&mut self, elected: Option<&Assignment>, leading_since: Duration) {
        let current = elected.map_or((String::new(), 0), |a| (a.holder.clone(), a.epoch));
        if self.elected != current {
            for seen in self.replicas.values_mut() {
                seen.span = None;
                seen.lost_ms = None;
            }
            self.last_live = self
                .replicas
                .get(&current.0)
                .map_or(leading_since, |seen| seen.at);
            self.elected = current;
        }
    }

    fn note(&mut self, sighting: &Sighting, epoch: u64, gap_ms: i64, now: Duration) {
        let at = now.saturating_sub(Duration::from_millis(sighting.age_ms));
        // What was brought under another election does not count for this one.
        let is_elected = self.elected.0 == sighting.replica && self.elected.1 == epoch;
        if !self.replicas.contains_key(&sighting.replica) {
            self.make_room();
        }
        let seen = self.replicas.entry(sighting.replica.clone()).or_insert(Seen {
            at,
            newest_ms: sighting.newest_ms,
            span: None,
            lost_ms: None,
        });
        seen.at = seen.at.max(at);
        seen.newest_ms = seen.newest_ms.max(sighting.newest_ms);
        if is_elected {
            seen.lost_ms = seen.lost_ms.max(sighting.lost_ms);
        }
        if let Some(span) = sighting.span.filter(|_| is_elected) {
            seen.span = Some(seen.span.map_or(span, |known| known.united(span, gap_ms)));
        }
    }

    /// Drops the replica that was not seen for the longest time, but never the elected one.
    fn make_room(&mut self) {
        while self.replicas.len() >= REPLICAS_MAX {
            let others = self.replicas.iter().filter(|(name, _)| **name != self.elected.0);
            let oldest = others
                .min_by_key(|(_, seen)| seen.at)
                .map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { return };
            self.replicas.remove(&oldest);
        }
    }

    /// A replica that only catches up on old samples is not the live one.
    fn note_liveness(&mut self, gap_ms: i64) {
        let Some(elected) = self.replicas.get(&self.elected.0) else {
            return;
        };
        let now = self
            .replicas
            .values()
            .map(|seen| seen.at)
            .max()
            .unwrap_or(elected.at);
        let lately = self
            .replicas
            .values()
            .filter(|seen| now.saturating_sub(seen.at) <= self.failover);
        let best = lately.map(|seen| seen.newest_ms).max().unwrap_or(i64::MIN);
        if best.saturating_sub(elected.newest_ms) <= gap_ms {
            self.last_live = self.last_live.max(elected.at);
        }
    }

    /// Of the replicas seen within the timeout, the one with the newest sample; the first by name of several.
    fn best_other(&self, elected: &str, now: Duration) -> Option<&str> {
        let lately = self
            .replicas
            .iter()
            .filter(|(name, seen)| name.as_str() != elected && now.saturating_sub(seen.at) <= self.failover);
        lately
            .max_by(|(a, x), (b, y)| x.newest_ms.cmp(&y.newest_ms).then_with(|| b.cmp(a)))
            .map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
