//! Applying commands: pure, deterministic, total.

use crate::{Assignment, ClusterId, ClusterState, Command, Member, Outcome, Rejection, Settings};

/// Most registered members.
pub(crate) const MEMBERS_MAX: usize = 10_000;
/// Most assignments.
pub(crate) const ASSIGNMENTS_MAX: usize = 50_000;
/// Longest name, zone, address or version, bytes.
const NAME_BYTES_MAX: usize = 253;
/// Longest task, bytes.
const TASK_BYTES_MAX: usize = 512;
/// By how much a restored state's version and epochs jump, so that nothing that was handed out after the copy was made
/// is handed out again.
const RESTORE_JUMP: u64 = 1000;

impl ClusterState {
    /// The state with which to create a restored cluster, when all voters were lost: the newest copy found, with a jump
    /// of the version and of every epoch over those that may have existed after it.
    #[must_use]
    pub fn restored(mut self) -> Self {
        self.version += RESTORE_JUMP;
        self.restores += 1;
        for partition in self.partitions.values_mut() {
            partition.epoch += RESTORE_JUMP;
        }
        for assignment in self.assignments.values_mut() {
            assignment.epoch += RESTORE_JUMP;
        }
        self
    }

    /// Applies a command. A refused command changes nothing.
    ///
    /// # Errors
    /// [`Rejection`], the same on every voter.
    pub fn apply(&mut self, command: &Command) -> Result<Outcome, Rejection> {
        let created = self.cluster_id.ok_or(Rejection::NotCreated);
        match command {
            Command::Create { state } => self.create(state),
            Command::Register { member, cluster_id } => self.register(created?, member, *cluster_id),
            Command::Remove { member } => self.remove(member),
            Command::SetCounting {
                partition,
                epoch,
                member,
                incarnation,
            } => self.set_counting(*partition, *epoch, member, *incarnation),
            Command::AcceptLoss { partition, note, id } => self.accept_loss(*partition, note, *id),
            Command::ReplaceReplica {
                partition,
                epoch,
                member,
                with,
            } => self.replace_replica(*partition, *epoch, member, with),
            Command::Assign { task, holder, epoch } => self.assign(task, holder, *epoch),
            Command::Unassign { task, epoch } => self.unassign(task, *epoch),
        }
    }

    fn create(&mut self, state: &Self) -> Result<Outcome, Rejection> {
        let Some(wanted) = state.cluster_id else {
            return Err(invalid("cluster id", "", "it must be set"));
        };
        match self.cluster_id {
            Some(id) if id == wanted => return Ok(self.unchanged(0)),
            Some(id) => {
                return Err(Rejection::OtherCluster {
                    member: String::new(),
                    got: wanted,
                    want: id,
                });
            }
            None => {}
        }
        if state.version == 0 || state.secret.0.is_empty() {
            return Err(invalid("first state", "", "it needs a version and a secret"));
        }
        validate_settings(&state.settings)?;
        *self = state.clone();
        Ok(Outcome {
            version: self.version,
            changed: true,
            epoch: 0,
        })
    }

    fn register(
        &mut self,
        cluster: ClusterId,
        member: &Member,
        from: Option<ClusterId>,
    ) -> Result<Outcome, Rejection> {
        validate_member(member)?;
        if let Some(got) = from.filter(|got| *got != cluster) {
            return Err(Rejection::OtherCluster {
                member: member.name.clone(),
                got,
                want: cluster,
            });
        }
        match self.members.get(&member.name) {
            Some(known) if known == member => return Ok(self.unchanged(0)),
            Some(known) => self.check_reregistration(known, member)?,
            None if self.members.len() >= MEMBERS_MAX => return Err(too_many("members", MEMBERS_MAX)),
            None => {}
        }
        let outcome = self.change(0);
        self.stop_counting_other_incarnations(&member.name, member.incarnation);
        self.members.insert(member.name.clone(), member.clone());
        self.form_partitions();
        Ok(outcome)
    }

    fn check_reregistration(&self, known: &Member, new: &Member) -> Result<(), Rejection> {
        if self.partitions_of(&known.name).next().is_none() {
            return Ok(());
        }
        let reason = if known.zone != new.zone {
            format!(
                "it holds replicas placed in zone {}, not {}",
                known.zone, new.zone
            )
        } else if !new.role.holds_partitions() {
            "it holds replicas and so must stay an ingester".to_owned()
        } else {
            return Ok(());
        };
        Err(Rejection::InUse {
            member: known.name.clone(),
            reason,
        })
    }

    fn remove(&mut self, member: &str) -> Result<Outcome, Rejection> {
        if !self.members.contains_key(member) {
            return Ok(self.unchanged(0));
        }
        if let Some(partition) = self.partitions_of(member).next() {
            return Err(Rejection::InUse {
                member: member.to_owned(),
                reason: format!(
                    "it holds a replica of partition {}; give that to another member first",
                    partition.id
                ),
            });
        }
        let outcome = self.change(0);
        self.members.remove(member);
        Ok(outcome)
    }

    fn assign(&mut self, task: &str, holder: &str, epoch: u64) -> Result<Outcome, Rejection> {
        validate_text("task", task, TASK_BYTES_MAX)?;
        validate_text("holder", holder, NAME_BYTES_MAX)?;
        let current = self.assignments.get(task).map_or(0, |a| a.epoch);
        let taken = epoch.saturating_add(1);
        if self
            .assignments
            .get(task)
            .is_some_and(|a| a.holder == holder && a.epoch == taken)
        {
            return Ok(self.unchanged(taken));
        }
        check_epoch(|| format!("task {task}"), epoch, current)?;
        if current == 0 && self.assignments.len() >= ASSIGNMENTS_MAX {
            return Err(too_many("assignments", ASSIGNMENTS_MAX));
        }
        let assignment = Assignment {
            holder: holder.to_owned(),
            epoch: taken,
        };
        self.assignments.insert(task.to_owned(), assignment);
        Ok(self.change(taken))
    }

    fn unassign(&mut self, task: &str, epoch: u64) -> Result<Outcome, Rejection> {
        let Some(assignment) = self.assignments.get(task) else {
            return Ok(self.unchanged(0));
        };
        check_epoch(|| format!("task {task}"), epoch, assignment.epoch)?;
        self.assignments.remove(task);
        Ok(self.change(0))
    }

    pub(crate) fn change(&mut self, epoch: u64) -> Outcome {
        self.version += 1;
        Outcome {
            version: self.version,
            changed: true,
            epoch,
        }
    }

    pub(crate) fn unchanged(&self, epoch: u64) -> Outcome {
        Outcome {
            version: self.version,
            changed: false,
            epoch,
        }
    }
}

/// Refuses any epoch but the current one: a lower one is fenced, a higher one was never handed out.
pub(crate) fn check_epoch(what: impl Fn() -> String, got: u64, current: u64) -> Result<(), Rejection> {
    match got.cmp(&current) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(Rejection::Fenced {
            what: what(),
            got,
            current,
        }),
        std::cmp::Ordering::Greater => Err(invalid(
            "epoch",
            &got.to_string(),
            &format!("{} is at epoch {current}", what()),
        )),
    }
}

pub(crate) fn invalid(what: &str, value: &str, rule: &str) -> Rejection {
    Rejection::Invalid {
        what: what.to_owned(),
        value: value.chars().take(64).collect(),
        rule: rule.to_owned(),
    }
}

fn too_many(what: &str, limit: usize) -> Rejection {
    Rejection::TooMany {
        what: what.to_owned(),
        limit: limit as u64,
    }
}

pub(crate) fn validate_text(what: &str, value: &str, bytes_max: usize) -> Result<(), Rejection> {
    if value.is_empty() || value.len() > bytes_max || value.chars().any(char::is_control) {
        let rule = format!("1 to {bytes_max} bytes without control characters");
        return Err(invalid(what, value, &rule));
    }
    Ok(())
}

fn validate_member(member: &Member) -> Result<(), Rejection> {
    validate_text("member name", &member.name, NAME_BYTES_MAX)?;
    validate_text("zone", &member.zone, NAME_BYTES_MAX)?;
    validate_text("gRPC address", &member.grpc_addr, NAME_BYTES_MAX)?;
    validate_text("HTTP address", &member.http_addr, NAME_BYTES_MAX)?;
    validate_text("version", &member.version, NAME_BYTES_MAX)
}

fn validate_settings(settings: &Settings) -> Result<(), Rejection> {
    let in_range = |what: &str, value: u32, max: u32| {
        if (1..=max).contains(&value) {
            return Ok(());
        }
        Err(invalid(what, &value.to_string(), &format!("1 to {max}")))
    };
    in_range("replication factor", settings.replication_factor, 9)?;
    in_range("number of partitions", settings.partitions, 4096)?;
    in_range("ingesters per zone", settings.ingesters_per_zone, 4096)
}
