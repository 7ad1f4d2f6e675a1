//! Reads of label names, label values and exemplars: the same fan-out and the same completeness as of series.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_model::{Exemplar, Expiry, Labels, Matchers, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_wire::{ExemplarsRequest, LabelsRequest, ReadEnd, SeriesExemplars};

use super::collected::Collected;
use super::deletions::DeletionsSeen;
use super::seam::Seam;
use super::stores::BlockRequest;
use super::{BlocksToRead, Budget, Cluster, Selection};

impl Cluster {
    /// Label names (`name` empty) or values of one label, sorted; those of several selections once.
    pub(crate) async fn labels(
        &self,
        selections: &[Selection],
        name: &str,
        budget: &Arc<Budget>,
    ) -> Result<Collected<String>, QueryError> {
        let mut found = Collected::new(budget)?;
        for selection in selections {
            self.labels_of(selection, name, &mut found).await?;
        }
        Ok(found)
    }

    async fn labels_of(
        &self,
        selection: &Selection,
        name: &str,
        found: &mut Collected<String>,
    ) -> Result<(), QueryError> {
        let Selection { tenant, range, .. } = selection;
        let read = |expiry| self.labels_of_heads(selection, name, expiry);
        let (of_heads, blocks) = self.read_as_of_one_version(selection, read).await?;
        of_heads.into_iter().try_for_each(|name| found.add(name))?;
        let Some(BlocksToRead { view, blocks }) = blocks else {
            return Ok(());
        };
        if blocks.is_empty() {
            return Ok(());
        }
        let request = BlockRequest {
            tenant: tenant.clone(),
            manifest_version: view.version,
            blocks,
            matchers: selection.matchers.clone(),
            range: *range,
            labels_only: true,
            limit: selection.wanted.limit as u64,
        };
        let names = self.asker().labels(&request, name).await;
        let names = names.map_err(|e| self.blocks_failed(tenant, e))?;
        names.into_iter().try_for_each(|name| found.add(name))
    }

    async fn labels_of_heads(
        &self,
        selection: &Selection,
        name: &str,
        expiry: Expiry,
    ) -> Result<(BTreeSet<String>, Seam), QueryError> {
        let mut plans = self.plans(&selection.tenant);
        let mut seen = DeletionsSeen::default();
        let reads = loop {
            let plan = plans.next()?;
            let deletions_version = seen.version();
            let read = self.heads.all_partitions(&plan, |target| {
                let request = LabelsRequest {
                    tenant: selection.tenant.clone(),
                    partition: target.partition,
                    epoch: target.epoch,
                    matchers: selection.matchers.clone(),
                    range: selection.range,
                    name: name.to_owned(),
                    limit: selection.wanted.limit as u64,
                    deletions_version,
                    expiry: expiry.clone(),
                };
                self.heads.ask_partition(target, move |client| {
                    let request = request.clone();
                    async move {
                        let reply = if request.name.is_empty() {
                            client.label_names(request).await?
                        } else {
                            client.label_values(request).await?
                        };
                        Ok((reply.names, reply.end))
                    }
                })
            });
            match read.await {
                Ok(reads) if seen.agree(&reads) => break reads,
                Ok(_) => plans.disagreed(seen.version()).await?,
                Err(e) => plans.failed(&plan, e).await?,
            }
        };
        let (mut found, mut seam) = (BTreeSet::new(), Seam::default());
        for read in reads {
            for (names, end) in read.answers {
                seam.add(read.partition, end);
                found.extend(names);
            }
        }
        Ok((found, seam))
    }

    /// Exemplars of the series that any of the selections matches, by series; each once, ascending in time.
    pub(crate) async fn exemplars(
        &self,
        tenant: &TenantId,
        selections: &[Matchers],
        range: TimeRange,
    ) -> Result<BTreeMap<Labels, Vec<Exemplar>>, QueryError> {
        let mut found = BTreeMap::<Labels, BTreeSet<(i64, u64, Labels)>>::new();
        let deletions_version = self.deletions_version(tenant).await?;
        for matchers in selections {
            let mut plans = self.plans(tenant);
            let reads = loop {
                let plan = plans.next()?;
                let read = self.heads.all_partitions(&plan, |target| {
                    let request = ExemplarsRequest {
                        tenant: tenant.clone(),
                        partition: target.partition,
                        epoch: target.epoch,
                        matchers: matchers.clone(),
                        range,
                        deletions_version,
                    };
                    self.heads.ask_partition(target, move |client| {
                        let request = request.clone();
                        async move { Ok((client.exemplars(request).await?, ReadEnd::default())) }
                    })
                });
                match read.await {
                    Ok(reads) => break reads,
                    Err(e) => plans.failed(&plan, e).await?,
                }
            };
            let of_heads = reads.into_iter().flat_map(|r| r.answers).flat_map(|(all, _)| all);
            let of_blocks = self.exemplars_of_blocks(tenant, matchers, range, deletions_version);
            let (of_blocks, expiry) = of_blocks.await?;
            for (labels, mut exemplars) in of_heads.chain(of_blocks) {
                if let Some(from) = expiry.kept_from(labels.as_ref()) {
                    exemplars.retain(|e| e.t >= from);
                }
                if exemplars.is_empty() {
                    continue;
                }
                let keys = exemplars.into_iter().map(|e| (e.t, e.v.to_bits(), e.labels));
                found.entry(labels).or_default().extend(keys);
            }
        }
        let exemplar = |(t, bits, labels)| Exemplar {
            t,
            v: f64::from_bits(bits),
            labels,
        };
        let all = found.into_iter();
        Ok(all
            .map(|(labels, keys)| (labels, keys.into_iter().map(exemplar).collect()))
            .collect())
    }

    /// Those of blocks: heads keep the newest only, whatever they say to have forgotten of samples. With them what is too old.
    async fn exemplars_of_blocks(
        &self,
        tenant: &TenantId,
        matchers: &Matchers,
        range: TimeRange,
        floor: u64,
    ) -> Result<(Vec<SeriesExemplars>, Expiry), QueryError> {
        let view = self.manifests.pin(tenant, floor).await?;
        let every_block = Seam::default();
        let wanted = view.blocks.iter().filter(|b| every_block.needs_block(b, range));
        let request = BlockRequest {
            tenant: tenant.clone(),
            manifest_version: view.version,
            blocks: wanted.map(|b| b.id.clone()).collect(),
            matchers: matchers.clone(),
            range,
            labels_only: true,
            limit: 0,
        };
        let found = self.asker().exemplars(&request).await;
        let found = found.map_err(|e| self.blocks_failed(tenant, e))?;
        Ok((found, view.expiry.clone()))
    }
}
