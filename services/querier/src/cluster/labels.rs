//! Reads of label names and label values: the same fan-out and the same completeness as of series.

use std::sync::Arc;

use koios_model::Expiry;
use koios_promql::QueryError;
use koios_wire::LabelsRequest;

use super::collected::{Charged, Collected};
use super::deletions::DeletionsSeen;
use super::seam::Seam;
use super::stores::BlockRequest;
use super::{Beside, BlocksToRead, Budget, Cluster, Selection};

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
        let budget = Arc::clone(found.budget());
        let read = |expiry| self.labels_of_heads(selection, name, expiry, &budget);
        let (of_heads, blocks) = self.read_as_of_one_version(selection, read).await?;
        let mut names = of_heads.into_iter().flat_map(Charged::into_answer);
        names.try_for_each(|name| found.add(name))?;
        let BlocksToRead { view, blocks } = match blocks {
            Beside::Known(blocks) => blocks,
            Beside::Unknown(none) => {
                found.lacks(none.into());
                return Ok(());
            }
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
            histogram_sums: false,
        };
        let names = self.asker(found.budget()).labels(&request, name).await;
        let names = names.map_err(|e| self.blocks_failed(tenant, e))?;
        let mut names = names.into_iter().flat_map(Charged::into_answer);
        names.try_for_each(|name| found.add(name))
    }

    async fn labels_of_heads(
        &self,
        selection: &Selection,
        name: &str,
        expiry: Expiry,
        budget: &Arc<Budget>,
    ) -> Result<(Vec<Charged<Vec<String>>>, Seam), QueryError> {
        let mut plans = self.plans(&selection.tenant);
        let mut seen = DeletionsSeen::default();
        let reads = loop {
            let plan = plans.next()?;
            let deletions_version = seen.to_ask_for();
            let heads = self.heads.seeing(&seen);
            let read = heads.all_partitions(&plan, |target| {
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
                heads.ask_partition_within(target, budget, move |client| {
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
                Err(e) if seen.has_another_way(&e) => {}
                Err(e) => plans.failed(&plan, e).await?,
            }
        };
        let (mut found, mut seam) = (Vec::new(), Seam::default());
        for read in reads {
            for (names, end) in read.answers {
                seam.add(read.partition, end);
                found.push(names);
            }
        }
        Ok((found, seam))
    }
}
