//! How partitions are formed and how their replicas come to count.
//!
//! Why a replica that counts again needs a copy from a read quorum *under the new epoch*: every batch acknowledged under
//! an older epoch lies at a write quorum of the old replicas, hence at one member at least of any read quorum of those that
//! still count; once these have adopted the new epoch they refuse older batches, so what they hold of them is final.

use std::collections::BTreeMap;

use koios_model::PartitionId;

use crate::apply::{check_epoch, validate_text};
use crate::{AcceptedLoss, ClusterState, Incarnation, LossId, Outcome, Partition, Rejection, Replica};

/// Longest note of an operator, bytes.
const NOTE_BYTES_MAX: usize = 1024;
/// How many accepted losses are remembered; the oldest go first.
const LOSSES_MAX: usize = 1000;

impl ClusterState {
    /// A data directory that is new, wiped or damaged may have lost what its predecessor acknowledged: it does not count,
    /// and batches sent under the old epoch, which may count on it, are fenced.
    pub(crate) fn stop_counting_other_incarnations(&mut self, member: &str, incarnation: Incarnation) {
        for partition in self.partitions.values_mut() {
            let stale = partition
                .replicas
                .iter_mut()
                .find(|r| r.member == member && r.incarnation != incarnation);
            if let Some(replica) = stale {
                replica.incarnation = incarnation;
                replica.counts = false;
                partition.epoch += 1;
            }
        }
    }

    /// Forms all partitions at once when enough ingesters have registered. Their replicas are all empty, so all count.
    pub(crate) fn form_partitions(&mut self) {
        if !self.partitions.is_empty() {
            return;
        }
        let mut zones: BTreeMap<&str, Vec<Replica>> = BTreeMap::new();
        for member in self.members_with(crate::Role::holds_partitions) {
            zones.entry(&member.zone).or_default().push(Replica {
                member: member.name.clone(),
                zone: member.zone.clone(),
                incarnation: member.incarnation,
                counts: true,
            });
        }
        let zones: Vec<Vec<Replica>> = zones
            .into_values()
            .filter(|z| z.len() >= self.settings.ingesters_per_zone as usize)
            .collect();
        let factor = self.settings.replication_factor as usize;
        if zones.len() < factor {
            return;
        }
        let formed_at_version = self.version;
        let mut next_in_zone = vec![0_usize; zones.len()];
        self.partitions = (0..self.settings.partitions)
            .map(|number| {
                let replicas = place(&zones, &mut next_in_zone, number as usize, factor);
                let id = PartitionId(number);
                let partition = Partition {
                    id,
                    epoch: 1,
                    replicas,
                    formed_at_version,
                };
                (id, partition)
            })
            .collect();
    }

    pub(crate) fn set_counting(
        &mut self,
        id: PartitionId,
        epoch: u64,
        member: &str,
        incarnation: Incarnation,
    ) -> Result<Outcome, Rejection> {
        let partition = self
            .partitions
            .get_mut(&id)
            .ok_or(Rejection::NoPartition { partition: id })?;
        check_epoch(|| format!("partition {id}"), epoch, partition.epoch)?;
        let (counting, needed) = (partition.counting().count(), partition.read_quorum());
        let replica = partition
            .replicas
            .iter_mut()
            .find(|r| r.member == member)
            .ok_or_else(|| Rejection::NoReplica {
                partition: id,
                member: member.to_owned(),
            })?;
        if replica.incarnation != incarnation {
            return Err(Rejection::OtherIncarnation {
                member: member.to_owned(),
                got: incarnation,
                current: replica.incarnation,
            });
        }
        if replica.counts {
            return Ok(self.unchanged(epoch));
        }
        if counting < needed {
            return Err(Rejection::NoQuorum {
                partition: id,
                counting: counting as u64,
                needed: needed as u64,
            });
        }
        replica.counts = true;
        // The epoch stays: batches in flight are acknowledged by the same members before and after.
        Ok(self.change(epoch))
    }

    pub(crate) fn accept_loss(
        &mut self,
        id: PartitionId,
        note: &str,
        loss: LossId,
    ) -> Result<Outcome, Rejection> {
        validate_text("note", note, NOTE_BYTES_MAX)?;
        let at_version = self.version + 1;
        let partition = self
            .partitions
            .get_mut(&id)
            .ok_or(Rejection::NoPartition { partition: id })?;
        let lost: Vec<Replica> = partition.replicas.iter().filter(|r| !r.counts).cloned().collect();
        let epoch = partition.epoch;
        // A member whose log is damaged refuses reads though it counts here, and waits for the epoch to rise: the loss
        // is recorded then too. The same command again, from a proposer that did not hear the answer, changes nothing.
        let known = match loss.is_none() {
            // Entries of versions without ids mean what they meant there, or voters of two versions would part.
            true => lost.is_empty(),
            false => self
                .accepted_losses
                .iter()
                .any(|l| l.partition == id && l.id == loss),
        };
        if known {
            return Ok(self.unchanged(epoch));
        }
        partition.epoch += 1;
        partition.replicas.iter_mut().for_each(|r| r.counts = true);
        let epoch = partition.epoch;
        if self.accepted_losses.len() >= LOSSES_MAX {
            self.accepted_losses.remove(0);
        }
        self.accepted_losses.push(AcceptedLoss {
            partition: id,
            epoch,
            at_version,
            note: note.to_owned(),
            lost,
            id: loss,
        });
        Ok(self.change(epoch))
    }

    pub(crate) fn replace_replica(
        &mut self,
        id: PartitionId,
        epoch: u64,
        member: &str,
        with: &str,
    ) -> Result<Outcome, Rejection> {
        let new = self.new_replica(with)?;
        let partition = self
            .partitions
            .get_mut(&id)
            .ok_or(Rejection::NoPartition { partition: id })?;
        let replaced = partition.replica(member).is_none() && partition.replica(with).is_some();
        if replaced && epoch.saturating_add(1) == partition.epoch {
            let epoch = partition.epoch;
            return Ok(self.unchanged(epoch));
        }
        check_epoch(|| format!("partition {id}"), epoch, partition.epoch)?;
        check_replacement(partition, member, &new)?;
        if let Some(replica) = partition.replicas.iter_mut().find(|r| r.member == member) {
            *replica = new;
        }
        partition.epoch += 1;
        let epoch = partition.epoch;
        Ok(self.change(epoch))
    }

    fn new_replica(&self, member: &str) -> Result<Replica, Rejection> {
        let found = self.members.get(member).ok_or_else(|| Rejection::NoMember {
            member: member.to_owned(),
        })?;
        if !found.role.holds_partitions() {
            return Err(in_use(member, "it is no ingester".to_owned()));
        }
        Ok(Replica {
            member: found.name.clone(),
            zone: found.zone.clone(),
            incarnation: found.incarnation,
            counts: false,
        })
    }
}

fn check_replacement(partition: &Partition, member: &str, new: &Replica) -> Result<(), Rejection> {
    let Some(old) = partition.replica(member) else {
        return Err(Rejection::NoReplica {
            partition: partition.id,
            member: member.to_owned(),
        });
    };
    let others = || partition.replicas.iter().filter(|r| r.member != member);
    if old.member == new.member || others().any(|r| r.member == new.member) {
        return Err(in_use(&new.member, "it holds a replica already".to_owned()));
    }
    if others().any(|r| r.zone == new.zone) {
        let reason = format!("another replica is in its zone {}", new.zone);
        return Err(in_use(&new.member, reason));
    }
    let left = others().filter(|r| r.counts).count();
    if partition.is_readable() && left < partition.read_quorum() {
        let reason = format!(
            "without it partition {} has {left} counting replicas, {} are needed to copy from",
            partition.id,
            partition.read_quorum()
        );
        return Err(in_use(member, reason));
    }
    Ok(())
}

fn in_use(member: &str, reason: String) -> Rejection {
    Rejection::InUse {
        member: member.to_owned(),
        reason,
    }
}

/// Partition `number` takes the zones from `number` on, and in each the ingester whose turn it is.
fn place(zones: &[Vec<Replica>], next_in_zone: &mut [usize], number: usize, factor: usize) -> Vec<Replica> {
    (0..factor)
        .filter_map(|i| {
            let zone = (number + i) % zones.len();
            let (members, next) = (zones.get(zone)?, next_in_zone.get_mut(zone)?);
            let chosen = members.get(*next % members.len())?;
            *next += 1;
            Some(chosen.clone())
        })
        .collect()
}
