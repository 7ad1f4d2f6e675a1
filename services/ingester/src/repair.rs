//! Repair: compares batch sets with the partition's other members and copies what is missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use koios_control::{ClusterState, Command, Partition, Replica as Placement};
use koios_model::{BatchSet, PartitionId, TenantId};
use koios_wire::{
    Batch, BatchSetsRequest, FetchBatchesRequest, IngesterService, ServiceError, ServiceErrorCode,
    TenantHoldings,
};

use crate::Result;
use crate::fetch::{Groups, first_of};
use crate::ingester::Inner;
use crate::record::{Entry, Origin, TakenOver};
use crate::segments::ReplicaKey;
use crate::settle::Settling;

/// What each peer had that was missing here in the round before. A batch on its way to all members is missing for a
/// moment; one that is missing twice is fetched.
type Seen = BTreeMap<(String, ReplicaKey), BatchSet>;

/// One member's repair of one partition.
struct Round<'a> {
    inner: &'a Inner,
    partition: &'a Partition,
    /// Everything must be copied now: the member does not count.
    whole: bool,
}

impl Inner {
    /// Repairs every hosted partition, for ever: at every change of the control state and at intervals.
    pub(crate) async fn repair_forever(self: Arc<Self>) {
        let mut seen = Seen::new();
        loop {
            let state = self.deps.state.current();
            let mut whole = true;
            for partition in state.partitions_of(&self.deps.member) {
                if let Err(error) = self.accept_losses(&state, partition).await {
                    tracing::warn!(partition = %partition.id, %error, "could not log that damage is settled");
                }
                whole &= self.repair(&state, partition, &mut seen).await;
            }
            let wait = match whole {
                true => self.settings.repair_interval,
                false => self.settings.repair_retry,
            };
            tokio::select! {
                biased;
                () = self.wake_repair.notified() => {}
                () = self.deps.runtime.clock.sleep(wait) => {}
            }
        }
    }

    /// Settles damage that no peer can make good: a single member's damaged tail is reported and taken as never
    /// answered; what an operator accepted as lost is lost.
    pub(crate) async fn accept_losses(&self, state: &ClusterState, p: &Partition) -> Result<()> {
        let (unreconciled, lost, adopted) = {
            let ledger = self.store.ledger.lock();
            let adopted = ledger.adopted.get(&p.id).copied().unwrap_or(0);
            (ledger.is_unreconciled(p.id), ledger.has_lost(p.id), adopted)
        };
        if !unreconciled {
            return Ok(());
        }
        let accepted = |l: &koios_control::AcceptedLoss| l.partition == p.id && l.epoch > adopted;
        let by = if state.accepted_losses.iter().any(accepted) {
            "an operator accepted the loss"
        } else if p.replicas.len() == 1 && !lost {
            tracing::error!(
                partition = %p.id,
                "the last records of the write-ahead log are damaged and there is no other replica: a crash while they were \
                 written explains it; if the disk damaged them later, acknowledged samples are lost"
            );
            "there is no other replica, and the tail was never answered unless the disk is broken"
        } else {
            return Ok(());
        };
        self.log_reconciled(p.id, by).await
    }

    /// Repairs one partition; false when this member does not count there yet and peers could change that.
    async fn repair(&self, state: &ClusterState, p: &Partition, seen: &mut Seen) -> bool {
        let Some(mine) = p.replica(&self.deps.member) else {
            return true;
        };
        if mine.incarnation != self.deps.incarnation() {
            return true;
        }
        let mut settling = Settling::begin(self, p);
        if p.replicas.len() < 2 {
            settling.end().await;
            return true;
        }
        let (unreconciled, lost) = {
            let ledger = self.store.ledger.lock();
            (ledger.is_unreconciled(p.id), ledger.has_lost(p.id))
        };
        let round = Round {
            inner: self,
            partition: p,
            whole: !mine.counts || unreconciled,
        };
        let mut copied = 0;
        for peer in p.replicas.iter().filter(|r| r.member != mine.member) {
            match round.copy_from(state, peer, seen, &mut settling).await {
                // A tail damaged by a power loss of all members must not make each wait for the others: that peers had
                // counted when the writes were answered is enough for it.
                Ok(copy) if copy.complete && peer.counts && (copy.counts || (mine.counts && !lost)) => {
                    copied += 1
                }
                Ok(_) => {}
                Err(error) => {
                    self.store.metrics.repair_failures.inc();
                    tracing::debug!(partition = %p.id, peer = peer.member, %error, "peer not compared");
                }
            }
        }
        if round.whole && copied >= p.read_quorum() {
            round.finish(mine, unreconciled).await;
        }
        settling.end().await;
        !round.whole
    }

    /// What a peer answers, or that it did not in time.
    pub(crate) async fn within_peer_deadline<T>(
        &self,
        call: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let deadline = self.settings.peer_deadline;
        match self.deps.runtime.clock.timeout(deadline, call).await {
            Ok(result) => result,
            Err(late) => Err(ServiceError::new(
                ServiceErrorCode::DeadlineExceeded,
                format!("no answer: {late}"),
            )),
        }
    }

    /// The batches held of a (partition, tenant).
    fn held(&self, partition: PartitionId, tenant: &TenantId) -> BatchSet {
        let replica = self.store.replica(partition, tenant);
        replica.map_or_else(BatchSet::default, |r| r.state.read().held.clone())
    }
}

/// How a copy from a peer ended.
struct Copy {
    /// Everything the peer said it held is held here.
    complete: bool,
    /// The peer says that it counts.
    counts: bool,
}

impl Round<'_> {
    async fn copy_from(
        &self,
        state: &ClusterState,
        peer: &Placement,
        seen: &mut Seen,
        settling: &mut Settling<'_>,
    ) -> Result<Copy, ServiceError> {
        let Some(member) = state.members.get(&peer.member) else {
            let message = format!("member {} is not registered", peer.member);
            return Err(ServiceError::new(ServiceErrorCode::NotFound, message));
        };
        let service = self.inner.deps.peers.ingester(member);
        let request = BatchSetsRequest {
            partition: self.partition.id,
            epoch: self.partition.epoch,
        };
        // Ours first: the peer's answer says what was acknowledged under older epochs only once we refuse those too.
        drop(self.inner.enter(self.partition.id, self.partition.epoch).await?);
        let reply = self
            .inner
            .within_peer_deadline(service.batch_sets(request))
            .await?;
        let mut complete = true;
        for theirs in &reply.tenants {
            let copied = self
                .copy_tenant(service.as_ref(), &peer.member, theirs, seen)
                .await;
            match copied {
                Err(error) if error.code == ServiceErrorCode::Corruption => {
                    self.report_unreadable(&peer.member, theirs, &error)
                }
                other => other?,
            }
            complete &= self.held(&theirs.tenant).includes(&theirs.held);
        }
        if peer.counts && reply.counts {
            settling.heard(&reply.tenants);
        }
        Ok(Copy {
            complete,
            counts: reply.counts,
        })
    }

    fn held(&self, tenant: &TenantId) -> BatchSet {
        self.inner.held(self.partition.id, tenant)
    }

    /// What is held and cannot be read from the own log any more: as long as a peer can give it, it is logged again.
    fn unreadable(&self, tenant: &TenantId) -> BatchSet {
        let replica = self.inner.store.replica(self.partition.id, tenant);
        replica.map_or_else(BatchSet::default, |r| r.state.read().unreadable.clone())
    }

    /// A peer's log is damaged: what it lacks comes from another, and other tenants need not wait for that.
    fn report_unreadable(&self, peer: &str, theirs: &TenantHoldings, error: &ServiceError) {
        self.inner.store.metrics.repair_failures.inc();
        let missing = theirs.logged.difference(&self.held(&theirs.tenant));
        let first = first_of(&missing);
        tracing::warn!(
            partition = %self.partition.id, tenant = %theirs.tenant, peer, %error, batches = missing.len(), ?first,
            "a peer cannot read batches that are missing here"
        );
    }

    async fn copy_tenant(
        &self,
        service: &dyn IngesterService,
        peer: &str,
        theirs: &TenantHoldings,
        seen: &mut Seen,
    ) -> Result<(), ServiceError> {
        let mine = self.held(&theirs.tenant);
        self.take_over(theirs, &mine).await?;
        let missing = theirs
            .logged
            .difference(&mine.difference(&self.unreadable(&theirs.tenant)));
        let place = (peer.to_owned(), (self.partition.id, theirs.tenant.clone()));
        let before = seen.remove(&place).unwrap_or_default();
        let wanted = if self.whole {
            missing.clone()
        } else {
            // Missing now and in the round before.
            missing.difference(&missing.difference(&before))
        };
        if !missing.is_empty() {
            seen.insert(place, missing);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        self.fetch(service, peer, &theirs.tenant, wanted).await
    }

    /// Adopts batches that only listed blocks hold, with the floors that lead readers there.
    async fn take_over(&self, theirs: &TenantHoldings, mine: &BatchSet) -> Result<(), ServiceError> {
        let held = theirs.held.difference(&theirs.logged).difference(mine);
        if held.is_empty() && !(self.whole && self.has_lower_floors(theirs)) {
            return Ok(());
        }
        let count = held.len();
        let entry = Entry::TakenOver(TakenOver {
            partition: self.partition.id,
            tenant: theirs.tenant.clone(),
            held,
            forgotten_below_ms: theirs.log_forgotten_below_ms,
            manifest_version: theirs.manifest_floor,
        });
        self.inner.log(entry).await.map_err(|e| self.inner.refuse(&e))?;
        self.inner.store.metrics.batches_taken_over.inc_by(count);
        tracing::info!(partition = %self.partition.id, tenant = %theirs.tenant, batches = count, "took over batches in listed blocks");
        Ok(())
    }

    /// Whether blocks that a peer knows have what this member may never have had: of streams that are over nobody tells.
    fn has_lower_floors(&self, theirs: &TenantHoldings) -> bool {
        let replica = self.inner.store.replica(self.partition.id, &theirs.tenant);
        let (below_ms, version) = replica.map_or((i64::MIN, 0), |replica| {
            let state = replica.state.read();
            (state.log_forgotten_below_ms, state.listed_version)
        });
        below_ms < theirs.log_forgotten_below_ms || version < theirs.manifest_floor
    }

    async fn fetch(
        &self,
        service: &dyn IngesterService,
        peer: &str,
        tenant: &TenantId,
        wanted: BatchSet,
    ) -> Result<(), ServiceError> {
        let (partition, asked) = (self.partition.id, wanted.len());
        let request = FetchBatchesRequest {
            partition,
            tenant: tenant.clone(),
            wanted: wanted.clone(),
        };
        let stream = self
            .inner
            .within_peer_deadline(service.fetch_batches(request))
            .await?;
        let mut batches = Groups::new(stream);
        let mut fetched = 0u64;
        loop {
            // What is left is fetched when there is room for it.
            let memory = self.inner.check_memory();
            memory.map_err(|e| self.inner.refuse(&e.into()))?;
            self.inner.check_disk(self.reserve_bytes()).await?;
            let group = batches.next_group(self.inner).await?;
            if group.is_empty() {
                break;
            }
            let appends = group.into_iter().map(|b| self.append(b, tenant, &wanted));
            let appended = try_join_all(appends).await?;
            fetched += appended.into_iter().map(u64::from).sum::<u64>();
        }
        self.inner.store.metrics.batches_repaired.inc_by(fetched);
        tracing::info!(%partition, %tenant, peer, asked, fetched, "batches fetched from a peer");
        Ok(())
    }

    /// Bytes that stay free. What makes damage good may use half of the reserve, as no log is given back before that; the rest
    /// is for what gives it back then.
    fn reserve_bytes(&self) -> u64 {
        let reserve = self.inner.settings.disk_reserve_bytes;
        match self.inner.is_damaged(self.partition.id) {
            true => reserve / 2,
            false => reserve,
        }
    }

    /// Logs a fetched batch as it is; false when it is not one that was asked for.
    async fn append(
        &self,
        batch: Arc<Batch>,
        tenant: &TenantId,
        wanted: &BatchSet,
    ) -> Result<bool, ServiceError> {
        let header = batch.header();
        let asked_for = header.partition == self.partition.id
            && header.tenant == *tenant
            && wanted.contains(header.stream, header.sequence);
        if asked_for {
            let logged = self.inner.log_when_there_is_room(batch, Origin::Member).await;
            logged.map_err(|e| self.inner.refuse(&e))?;
        }
        Ok(asked_for)
    }

    /// Everything acknowledged is here now.
    async fn finish(&self, mine: &Placement, unreconciled: bool) {
        let partition = self.partition.id;
        if unreconciled
            && let Err(error) = self
                .inner
                .log_reconciled(partition, "copied from a read quorum of peers")
                .await
        {
            tracing::warn!(%partition, %error, "could not log that damage is settled");
            return;
        }
        if mine.counts {
            return;
        }
        let command = Command::SetCounting {
            partition,
            epoch: self.partition.epoch,
            member: self.inner.deps.member.clone(),
            incarnation: self.inner.deps.incarnation(),
        };
        match self.inner.deps.control.propose(command).await {
            Ok(()) => {
                tracing::info!(%partition, "copied from a read quorum of peers; the member counts again")
            }
            Err(error) => tracing::warn!(%partition, %error, "the member is repaired but could not say so"),
        }
    }
}
