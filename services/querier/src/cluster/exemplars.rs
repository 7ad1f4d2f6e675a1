//! Reads of exemplars: of heads the newest, of blocks all that were cut with their series.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_model::{Exemplar, Expiry, Labels, Matchers, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_wire::{ExemplarsRequest, ReadEnd, SeriesExemplars};

use super::budget::{Budget, Charge};
use super::collected::{Charged, Footprint};
use super::seam::Seam;
use super::stores::BlockRequest;
use super::{Cluster, manifests};

/// Most exemplars of an answer, however many stores and members they come from.
const EXEMPLARS_MAX: usize = 20_000;
/// Most bytes of their labels, and of their series'.
const LABEL_BYTES_MAX: usize = 16 << 20;
/// What an entry occupies beside its labels.
const ENTRY_BYTES: usize = 96;

/// Exemplars that were found, charged to the query.
#[derive(Debug)]
pub struct FoundExemplars {
    series: BTreeMap<Labels, BTreeSet<(i64, u64, Labels)>>,
    count: usize,
    label_bytes: usize,
    charge: Charge,
    budget: Arc<Budget>,
}

impl FoundExemplars {
    fn new(budget: &Arc<Budget>) -> Result<Self, QueryError> {
        Ok(Self {
            series: BTreeMap::new(),
            count: 0,
            label_bytes: 0,
            charge: budget.charge(0)?,
            budget: Arc::clone(budget),
        })
    }

    /// Adds those of a series that are not there yet.
    fn add(&mut self, labels: Labels, exemplars: Vec<Exemplar>) -> Result<(), QueryError> {
        let (mut entries, mut bytes) = (0, 0);
        if !self.series.contains_key(&labels) {
            (entries, bytes) = (1, labels.heap_bytes());
        }
        let of_series = self.series.entry(labels).or_default();
        for e in exemplars {
            let of_labels = e.labels.heap_bytes();
            if of_series.insert((e.t, e.v.to_bits(), e.labels)) {
                self.count += 1;
                entries += 1;
                bytes += of_labels;
            }
        }
        self.label_bytes += bytes;
        if self.count > EXEMPLARS_MAX || self.label_bytes > LABEL_BYTES_MAX {
            let text = format!(
                "more than {EXEMPLARS_MAX} exemplars, or {LABEL_BYTES_MAX} bytes of labels, match: add matchers or ask for a shorter range"
            );
            return Err(QueryError::LimitExceeded(text));
        }
        self.charge
            .absorb(self.budget.charge(bytes + entries * ENTRY_BYTES)?);
        Ok(())
    }

    /// By series in label order, each series' ascending in time; and what must live as long as they do.
    pub fn into_parts(self) -> (Vec<SeriesExemplars>, Charge) {
        let exemplar = |(t, bits, labels)| Exemplar {
            t,
            v: f64::from_bits(bits),
            labels,
        };
        let series = self.series.into_iter();
        let series = series.map(|(labels, all)| (labels, all.into_iter().map(exemplar).collect()));
        (series.collect(), self.charge)
    }
}

impl Cluster {
    /// Exemplars of the series that any of the selections matches, each once.
    ///
    /// # Errors
    /// [`QueryError`] when a partition or block cannot be read, or there are more than an answer may have.
    pub async fn exemplars(
        &self,
        tenant: &TenantId,
        selections: &[Matchers],
        range: TimeRange,
        budget: &Arc<Budget>,
    ) -> Result<FoundExemplars, QueryError> {
        let mut found = FoundExemplars::new(budget)?;
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
                    self.heads.ask_partition_within(target, budget, move |client| {
                        let request = request.clone();
                        async move { Ok((client.exemplars(request).await?, ReadEnd::default())) }
                    })
                });
                match read.await {
                    Ok(reads) => break reads,
                    Err(e) => plans.failed(&plan, e).await?,
                }
            };
            let of_heads = reads.into_iter().flat_map(|r| r.answers).map(|(all, _)| all);
            let of_blocks = BlocksWanted {
                tenant,
                matchers,
                range,
                floor: deletions_version,
            };
            let (of_blocks, expiry) = self.exemplars_of_blocks(of_blocks, budget).await?;
            for answer in of_heads.chain(of_blocks) {
                for (labels, mut exemplars) in answer.into_answer() {
                    if let Some(from) = expiry.kept_from(labels.as_ref()) {
                        exemplars.retain(|e| e.t >= from);
                    }
                    if !exemplars.is_empty() {
                        found.add(labels, exemplars)?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// Those of blocks: heads keep the newest only, whatever they say to have forgotten of samples. With them what is too old.
    async fn exemplars_of_blocks(
        &self,
        wanted: BlocksWanted<'_>,
        budget: &Arc<Budget>,
    ) -> Result<(Vec<Charged<Vec<SeriesExemplars>>>, Expiry), QueryError> {
        let BlocksWanted { tenant, range, .. } = wanted;
        let view = self.manifests.pin(tenant, wanted.floor).await?;
        let every_block = Seam::default();
        // Summaries have none.
        let is_wanted =
            |b: &&manifests::ListedBlock| b.summarised.is_none() && every_block.needs_block(b, range);
        let request = BlockRequest {
            tenant: tenant.clone(),
            manifest_version: view.version,
            blocks: view
                .blocks
                .iter()
                .filter(is_wanted)
                .map(|b| b.id.clone())
                .collect(),
            matchers: wanted.matchers.clone(),
            range,
            labels_only: true,
            limit: 0,
            histogram_sums: false,
        };
        let found = self.asker(budget).exemplars(&request).await;
        let found = found.map_err(|e| self.blocks_failed(tenant, e))?;
        Ok((found, view.expiry.clone()))
    }
}

/// What is wanted of blocks.
struct BlocksWanted<'w> {
    tenant: &'w TenantId,
    matchers: &'w Matchers,
    range: TimeRange,
    /// The least version of the manifest.
    floor: u64,
}
