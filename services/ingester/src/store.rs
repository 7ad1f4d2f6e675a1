//! All state that log records change.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_head::HeadOptions;
use koios_model::{PartitionId, TenantId};
use koios_runtime::{ClockHandle, watch};
use koios_tenancy::Overrides;
use koios_wal::{Damage, DamageKind, Lsn};
use parking_lot::{Mutex, RwLock};

use crate::metrics::IngesterMetrics;
use crate::record::Checkpoint;
use crate::replica::Replica;
use crate::segments::{ReplicaKey, SegmentIndex};
use crate::settings::millis;
use crate::{Deps, Settings};

/// Epochs and damage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) adopted: BTreeMap<PartitionId, u64>,
    pub(crate) damaged_at: Option<Lsn>,
    pub(crate) lost_at: Option<Lsn>,
    pub(crate) reconciled_at: BTreeMap<PartitionId, Lsn>,
    pub(crate) truncated_below: u32,
    /// This start found that something is missing.
    pub(crate) found_lost: bool,
}

impl Ledger {
    /// Notes damage. What had been synced is lost; a damaged tail may never have been answered.
    pub(crate) fn damaged(&mut self, damage: &Damage) {
        self.damaged_at = self.damaged_at.max(Some(damage.lsn));
        if damage.kind != DamageKind::Tail {
            self.lost_at = self.lost_at.max(Some(damage.lsn));
        }
    }

    /// Notes that answered records are missing that no damage in a segment stands for.
    pub(crate) fn lost(&mut self, lsn: Lsn) {
        self.damaged_at = self.damaged_at.max(Some(lsn));
        self.lost_at = self.lost_at.max(Some(lsn));
        self.found_lost = true;
    }

    fn open(&self, at: Option<Lsn>, partition: PartitionId) -> bool {
        let done = self.reconciled_at.get(&partition).copied();
        at.is_some_and(|at| done.is_none_or(|done| done < at))
    }

    /// Whether acknowledged batches of a partition may be missing because the log was damaged.
    pub(crate) fn is_unreconciled(&self, partition: PartitionId) -> bool {
        self.open(self.damaged_at, partition)
    }

    /// Whether some are known to be.
    pub(crate) fn has_lost(&self, partition: PartitionId) -> bool {
        self.open(self.lost_at, partition)
    }

    pub(crate) fn merge(&mut self, c: &Checkpoint) {
        for (&p, &epoch) in &c.adopted {
            self.adopt(p, epoch);
        }
        self.damaged_at = self.damaged_at.max(c.damaged_at.map(Lsn));
        self.lost_at = self.lost_at.max(c.lost_at.map(Lsn));
        for (&p, &at) in &c.reconciled_at {
            self.reconcile(p, Lsn(at));
        }
        self.truncated_below = self.truncated_below.max(c.truncated_below);
    }

    pub(crate) fn adopt(&mut self, partition: PartitionId, epoch: u64) {
        let adopted = self.adopted.entry(partition).or_default();
        *adopted = epoch.max(*adopted);
    }

    pub(crate) fn reconcile(&mut self, partition: PartitionId, at: Lsn) {
        let done = self.reconciled_at.entry(partition).or_default();
        *done = at.max(*done);
    }
}

/// The state of an ingester: changed by [`koios_wal::Apply`] only, but for what the cut task gives back.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) clock: ClockHandle,
    pub(crate) metrics: IngesterMetrics,
    pub(crate) window_ms: i64,
    /// Of all heads.
    pub(crate) head_options: HeadOptions,
    pub(crate) head_keep_ms: i64,
    pub(crate) segments: Mutex<SegmentIndex>,
    pub(crate) ledger: Mutex<Ledger>,
    /// The newest segment of the log that was begun.
    pub(crate) begun: watch::Sender<u32>,
    /// What tenants may hold.
    pub(crate) limits: Overrides,
    replicas: RwLock<BTreeMap<ReplicaKey, Arc<Replica>>>,
}

impl Store {
    /// Nothing yet. Hashes of what senders choose are keyed at random.
    pub(crate) fn new(deps: &Deps, settings: &Settings) -> Self {
        let seed = deps.runtime.rng.u64();
        Self {
            clock: Arc::clone(&deps.runtime.clock),
            head_options: HeadOptions {
                window_ms: settings.window_ms(),
                seed,
                ..HeadOptions::default()
            },
            metrics: IngesterMetrics::new(&deps.metrics),
            window_ms: settings.window_ms(),
            head_keep_ms: millis(settings.head_keep),
            segments: Mutex::default(),
            ledger: Mutex::default(),
            begun: watch::Sender::new(0),
            limits: deps.limits.clone(),
            replicas: RwLock::default(),
        }
    }

    /// A (partition, tenant), if anything was ever held of it.
    pub(crate) fn replica(&self, partition: PartitionId, tenant: &TenantId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&(partition, tenant.clone())).cloned()
    }

    /// A (partition, tenant), created when new.
    pub(crate) fn replica_or_new(&self, key: &ReplicaKey) -> Arc<Replica> {
        if let Some(found) = self.replicas.read().get(key) {
            return Arc::clone(found);
        }
        let mut replicas = self.replicas.write();
        let new = || {
            let options = HeadOptions {
                exemplars_max: self.limits.of(&key.1).max_exemplars,
                ..self.head_options
            };
            Arc::new(Replica::new(key.clone(), options))
        };
        Arc::clone(replicas.entry(key.clone()).or_insert_with(new))
    }

    /// All of them, ascending by partition, then tenant.
    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().cloned().collect()
    }

    /// Those of one partition, ascending by tenant.
    pub(crate) fn replicas_of(&self, partition: PartitionId) -> Vec<Arc<Replica>> {
        let replicas = self.replicas.read();
        replicas
            .values()
            .filter(|r| r.key.0 == partition)
            .cloned()
            .collect()
    }

    /// The first segment with a sample that no listed block holds.
    pub(crate) fn first_unlisted(&self) -> Option<u32> {
        let replicas = self.replicas();
        let unlisted = replicas
            .iter()
            .filter_map(|r| r.state.read().head.unlisted_from_lsn());
        unlisted.min().map(|lsn| Lsn(lsn).segment())
    }

    /// The first segment that a replay must load into heads: all before it hold only samples that are in listed blocks
    /// and older than what heads keep.
    pub(crate) fn heads_need_from(&self, active: u32) -> u32 {
        // As heads forget: of one whose tenant sends nothing more, nothing is kept for ever.
        let now = self.clock.now_ms();
        let keep_from = |r: &Arc<Replica>| {
            let newest = r.state.read().newest_ms?.max(now);
            Some((r.key.clone(), newest.saturating_sub(self.head_keep_ms)))
        };
        let keep: BTreeMap<ReplicaKey, i64> = self.replicas().iter().filter_map(keep_from).collect();
        let recent = self.segments.lock().first_newer_than(&keep);
        let unlisted = self.first_unlisted();
        recent
            .into_iter()
            .chain(unlisted)
            .min()
            .unwrap_or(active)
            .min(active)
    }
}
