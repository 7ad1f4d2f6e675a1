//! What can go wrong with a bucket.

use koios_block::BlockId;
use koios_model::TenantId;

use crate::verdict::Rejection;

/// The result of bucket operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on the bucket failed. Each variant says what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage did not answer in time, or kept failing: nothing was changed, trying again later may help.
    #[error("object {object} is unavailable after {attempts} attempts: {reason}")]
    Unavailable {
        /// The object's path in the bucket.
        object: String,
        /// How often it was tried.
        attempts: u32,
        /// The last failure, in words.
        reason: String,
        /// The last failure, unless it was a timeout or an answer of the storage.
        #[source]
        source: Option<Box<object_store::Error>>,
    },
    /// The storage refuses it, and will until an operator changes something: nothing was changed by the last attempt. Whoever has
    /// something to keep until it is stored keeps it.
    #[error("object {object} was refused: {reason}; {rejection}")]
    Rejected {
        /// The object's path in the bucket, and the bucket's URL.
        object: String,
        /// How often it was tried.
        attempts: u32,
        /// What to change.
        rejection: Rejection,
        /// What the storage said.
        reason: String,
    },
    /// The object does not exist.
    #[error("object {object} does not exist")]
    NotFound {
        /// The object's path in the bucket.
        object: String,
    },
    /// The object's bytes are not what they must be: never used; to be repaired or reported.
    #[error("object {object} is corrupt: {reason}")]
    Corrupt {
        /// The object's path in the bucket.
        object: String,
        /// What does not fit.
        reason: String,
    },
    /// A part of a new block reads back other than it was sent. It must not be listed; what it was made of is still there, and is
    /// to be sent again under another name.
    #[error(
        "{part} of block {block} of tenant {tenant} reads back other than it was sent: {reason}; the block is not listed, what it was \
         made of stays, and it is sent again under another name: if that goes on, check the storage and what is between it and here"
    )]
    Altered {
        /// The tenant.
        tenant: TenantId,
        /// The new block.
        block: BlockId,
        /// The first of its parts that does.
        part: Box<str>,
        /// What does not fit.
        reason: Box<str>,
    },
    /// A newer version of the program wrote it: sound, but not to be read or replaced by this one.
    #[error("object {object} has format {found}, this version reads up to {supported}: upgrade this process")]
    Newer {
        /// The object's path in the bucket.
        object: String,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// A newer owner acts on the resource: this one must stop (I14).
    #[error(
        "{resource} of tenant {tenant} is owned under epoch {found}, this writer has {epoch}: stop writing. It passes once this process \
         hears of the newer epoch from its control voters; if it stays, a cluster or process that was restored from this bucket's \
         backup of the control state lists there, and this one lists nothing any more: run one of the two only, see \
         docs/operations.md, \"Two processes are one cluster\""
    )]
    Fenced {
        /// The tenant.
        tenant: TenantId,
        /// What is owned.
        resource: String,
        /// The writer's epoch.
        epoch: u64,
        /// The higher epoch found.
        found: u64,
    },
    /// The block was deleted, and what is deleted never comes back (I10).
    #[error("block {block} of tenant {tenant} was deleted and cannot be listed again")]
    DeadBlock {
        /// The tenant.
        tenant: TenantId,
        /// The block.
        block: BlockId,
    },
    /// Other writers won every race for the next version: trying again later helps.
    #[error(
        "manifest of tenant {tenant} changed {attempts} times while version {version} was being committed"
    )]
    Contended {
        /// The tenant.
        tenant: TenantId,
        /// The last version tried.
        version: u64,
        /// How many races were lost.
        attempts: u32,
    },
    /// The storage stopped answering during a commit, which may or may not have happened: read the manifest before
    /// acting on either.
    #[error(
        "whether version {version} of the manifest of tenant {tenant} was committed is unknown: {reason}"
    )]
    Unknown {
        /// The tenant.
        tenant: TenantId,
        /// The version.
        version: u64,
        /// The last failure.
        reason: String,
    },
    /// The caller's change does not fit the manifest as it is now.
    #[error("manifest of tenant {tenant} refuses the change: {reason}")]
    Refused {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// A manifest older than needed is all there is: the bucket shows less than a peer has seen.
    #[error(
        "manifest of tenant {tenant} is at version {found}, version {wanted} was announced: if that stays so, versions are lost; bring \
         them back, or end all processes of the cluster and run `koios ctl manifest rebuild --at-least-version {wanted}`"
    )]
    Behind {
        /// The tenant.
        tenant: TenantId,
        /// The newest version found.
        found: u64,
        /// The version that a peer named.
        wanted: u64,
    },
    /// Versions of the manifest are gone that were there: what is left would pass for all there is. Nothing is committed to it, and
    /// nothing of the tenant may be deleted, until an operator has repaired it.
    #[error(
        "manifest of tenant {tenant} is at version {found}, and {by} tells of version {seen}: versions are lost, and nothing is committed \
         or deleted meanwhile; bring them back, or end all processes of the cluster and run `koios ctl manifest rebuild`"
    )]
    Lost {
        /// The tenant.
        tenant: TenantId,
        /// The newest version found.
        found: u64,
        /// A version that was there.
        seen: u64,
        /// What tells of it.
        by: String,
    },
    /// The storage ignores preconditions, so two writers could overwrite each other.
    #[error(
        "bucket {bucket} failed its self-test: {reason}; use a storage with conditional writes, or declare this process \
         its only writer"
    )]
    Unsafe {
        /// The bucket's URL.
        bucket: String,
        /// What it did.
        reason: String,
    },
    /// The bucket's URL cannot be used.
    #[error("bucket URL {url:?} cannot be used: {reason}")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The storage did not hand out a block that has to be looked at, however often it was asked: nothing was changed.
    #[error(
        "block {block} of tenant {tenant} could not be read, and whether it is whole is not known: nothing was changed, run it again"
    )]
    Unread {
        /// The tenant.
        tenant: TenantId,
        /// The block.
        block: BlockId,
        /// What it said last.
        #[source]
        source: Box<Error>,
    },
    /// The block itself is at fault.
    #[error(transparent)]
    Block(#[from] koios_block::Error),
}

impl Error {
    /// Whether the same call may succeed later: by itself, or for all objects once the bucket's settings are right.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Rejected { .. }
                | Self::Altered { .. }
                | Self::Contended { .. }
                | Self::Unknown { .. }
                | Self::Behind { .. }
                | Self::Unread { .. }
        ) || matches!(self, Self::Block(koios_block::Error::Read { .. }))
    }

    /// Whether the bucket fails as a whole, as far as this tells, so that other calls would, too: not where it answers and shows
    /// another body than it was sent.
    pub fn is_outage(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Altered { .. })
    }

    /// Whether it tells of one object alone, as far as this tells, and would come again: other objects may well be there for who asks.
    pub(crate) fn is_of_object(&self) -> bool {
        match self {
            Self::Rejected { rejection, .. } => match rejection {
                Rejection::Permission
                | Rejection::Archived
                | Rejection::Encryption
                | Rejection::Unsupported
                | Rejection::Request => true,
                Rejection::NoBucket | Rejection::Credentials | Rejection::Region => false,
            },
            Self::Block(koios_block::Error::Read { source, .. }) => {
                let source = source.downcast_ref::<Self>();
                source.is_some_and(Self::is_of_object)
            }
            other => !other.is_transient(),
        }
    }

    pub(crate) fn altered(
        tenant: &TenantId,
        block: BlockId,
        part: &str,
        reason: impl std::fmt::Display,
    ) -> Self {
        Self::Altered {
            tenant: tenant.clone(),
            block,
            part: part.into(),
            reason: reason.to_string().into(),
        }
    }

    pub(crate) fn corrupt(object: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            object: object.to_string(),
            reason: reason.to_string(),
        }
    }
}
