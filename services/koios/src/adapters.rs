//! Small adapters between libraries that do not know each other.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use koios_bucket::{Bucket, Error as BucketError};
use koios_control::{Command, ControlClient, Error as ControlError, Member, PairReport, Ruling, StateBackup};
use koios_import::Retentions;
use koios_ingester::ControlProposer;
use koios_model::TenantId;
use koios_tenancy::Overrides;
use koios_wire::{IngesterService, ServiceError, ServiceErrorCode, StoreService};

use crate::members::Members;

/// Longest an ingester's proposal is tried before the ingester hears that it failed and tries again.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// The control state's backup in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct BucketBackup(pub(crate) Bucket);

#[async_trait]
impl StateBackup for BucketBackup {
    fn bucket(&self) -> String {
        self.0.url().to_owned()
    }

    async fn load(&self) -> Result<Option<Bytes>, ControlError> {
        match self.0.control_backup().await {
            Ok(backup) => Ok(backup.map(|(_, bytes)| bytes)),
            Err(BucketError::Corrupt { object, reason }) => Err(ControlError::Corrupt {
                path: object.into(),
                detail: reason,
            }),
            Err(error) => Err(ControlError::Backup(error.to_string())),
        }
    }

    async fn store(&self, version: u64, bytes: Bytes) -> Result<(), ControlError> {
        self.0
            .put_control_backup(version, &bytes)
            .await
            .map_err(|e| ControlError::Backup(e.to_string()))
    }
}

/// The services' way to the control plane.
#[derive(Clone, Debug)]
pub(crate) struct Proposer(pub(crate) ControlClient);

#[async_trait]
impl ControlProposer for Proposer {
    async fn propose(&self, command: Command) -> Result<(), ServiceError> {
        match self.0.propose(command, PROPOSE_DEADLINE).await {
            Ok(_) => Ok(()),
            Err(e @ ControlError::Rejected(_)) => Err(ServiceError::new(
                ServiceErrorCode::InvalidArgument,
                e.to_string(),
            )),
            Err(e) => Err(ServiceError::unavailable(e.to_string())),
        }
    }
}

/// Longest a report of HA pairs is tried: the next one follows in seconds.
const REPORT_DEADLINE: Duration = Duration::from_secs(3);

#[async_trait]
impl koios_distributor::Referee for Proposer {
    async fn report(&self, pairs: Vec<PairReport>) -> Result<Vec<Ruling>, ServiceError> {
        let answer = self.0.report_pairs(pairs, REPORT_DEADLINE).await;
        answer.map_err(|e| ServiceError::unavailable(e.to_string()))
    }
}

impl koios_distributor::Members for Members {
    fn ingester(&self, name: &str, addr: &str) -> Arc<dyn IngesterService> {
        self.ingester_of(name, addr)
    }
}

impl koios_ingester::Peers for Members {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        self.ingester_of(&member.name, &member.grpc_addr)
    }
}

impl koios_querier::Members for Members {
    fn ingester(&self, member: &Member) -> Option<Arc<dyn IngesterService>> {
        Some(self.ingester_of(&member.name, &member.grpc_addr))
    }

    fn store(&self, member: &Member) -> Option<Arc<dyn StoreService>> {
        Some(self.store_of(&member.name, &member.grpc_addr))
    }
}

/// How long samples of tenants are kept at most, by their overrides.
#[derive(Clone, Debug)]
pub(crate) struct OfTenants {
    /// Of tenants that say nothing.
    pub(crate) default: Duration,
    pub(crate) overrides: Overrides,
}

impl Retentions for OfTenants {
    fn of(&self, tenant: &TenantId) -> Duration {
        let (own, all) = self.overrides.retention(tenant);
        own.or(&all).longest(self.default)
    }
}
