//! Reads and commits manifest versions: put-if-absent of the next version is the commit.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use koios_model::TenantId;
use object_store::path::Path;

use crate::bucket::{Bucket, Created};
use crate::lost::{Beginning, Hint, lost};
use crate::manifest::{MANIFEST_FORMAT, Manifest, Nonce, Writer};
use crate::{Error, Result};

/// Lost races after which a commit gives up; each means that another writer got ahead.
const RACES_MAX: u32 = 64;
/// Reads in a row that do not show an object that is there, after which it counts as damaged.
const UNSEEN_MAX: u32 = 8;
/// Largest manifest accepted.
const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// Versions whose content is dropped at a time.
const DROPPED_MAX: u64 = 256;

const ENVELOPE_START: &[u8] = b"{\"crc32c\":\"";
const ENVELOPE_MIDDLE: &[u8] = b"\",\"manifest\":";
const ENVELOPE_END: &[u8] = b"}";

/// What a version's object holds.
#[derive(Debug)]
enum Stored {
    Manifest(Box<Manifest>),
    /// The content was dropped, or a rebuild passed it over; this later version existed then.
    Superseded(u64),
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Superseded {
    superseded_by: u64,
}

fn checksum(json: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(json))
}

fn encode(json: &[u8]) -> Bytes {
    let crc = checksum(json);
    [
        ENVELOPE_START,
        crc.as_bytes(),
        ENVELOPE_MIDDLE,
        json,
        ENVELOPE_END,
    ]
    .concat()
    .into()
}

/// What every format of a manifest has.
#[derive(serde::Deserialize)]
struct Formatted {
    format: u32,
}

fn decode(object: &Path, bytes: &[u8]) -> Result<Stored> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(corrupt(format!(
            "{} bytes, limit {MANIFEST_BYTES_MAX}",
            bytes.len()
        )));
    }
    let json = (|| {
        let rest = bytes.strip_prefix(ENVELOPE_START)?;
        let (crc, rest) = rest.split_at_checked(8)?;
        let json = rest.strip_prefix(ENVELOPE_MIDDLE)?.strip_suffix(ENVELOPE_END)?;
        Some((crc, json))
    })();
    let Some((crc, json)) = json else {
        return Err(corrupt("it is not an enveloped manifest".to_owned()));
    };
    // As text: what parses to the same number but was written by nobody is damage, too.
    if checksum(json).as_bytes() != crc {
        return Err(corrupt("it failed its checksum".to_owned()));
    }
    if let Ok(s) = serde_json::from_slice::<Superseded>(json) {
        return Ok(Stored::Superseded(s.superseded_by));
    }
    // Before the rest, which that format may have changed.
    let Formatted { format } = serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))?;
    if format > MANIFEST_FORMAT {
        return Err(Error::Newer {
            object: object.to_string(),
            found: format,
            supported: MANIFEST_FORMAT,
        });
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))?;
    if manifest.format == 0 {
        return Err(corrupt("it has format 0".to_owned()));
    }
    Ok(Stored::Manifest(Box::new(manifest)))
}

impl Bucket {
    /// One version, or `None` when it does not exist or its content was dropped (see [`Self::drop_history`]).
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Unavailable`].
    pub async fn manifest(&self, tenant: &TenantId, version: u64) -> Result<Option<Arc<Manifest>>> {
        Ok(match self.stored(tenant, version).await? {
            Some(Stored::Manifest(m)) => Some(Arc::from(m)),
            Some(Stored::Superseded(_)) | None => None,
        })
    }

    async fn stored(&self, tenant: &TenantId, version: u64) -> Result<Option<Stored>> {
        let path = self.layout().manifest(tenant, version);
        let Some(bytes) = self.get(&path).await? else {
            return Ok(None);
        };
        let stored = decode(&path, &bytes)?;
        if let Stored::Manifest(m) = &stored
            && (m.version != version || m.tenant != *tenant)
        {
            let reason = format!("it says version {} of tenant {}", m.version, m.tenant);
            return Err(Error::corrupt(&path, reason));
        }
        Ok(Some(stored))
    }

    /// The newest version; version 0, empty, for a tenant that has none.
    ///
    /// # Errors
    /// [`Error::Lost`] when there was a newer one; [`Error::Corrupt`] or [`Error::Unavailable`].
    pub async fn latest(&self, tenant: &TenantId) -> Result<Arc<Manifest>> {
        self.latest_of(tenant, false).await
    }

    /// As [`Self::latest`]. Of a tenant of which a list has just shown that nothing tells of any version, `had_none`, only the hint and
    /// version 1 are asked for one.
    pub(crate) async fn latest_of(&self, tenant: &TenantId, had_none: bool) -> Result<Arc<Manifest>> {
        let mut unseen = 0;
        loop {
            let hint = self.hint(tenant).await?;
            let start = match hint {
                Some(hint) => self
                    .stored(tenant, hint.version)
                    .await?
                    .map(|s| (hint.version, s)),
                None => None,
            };
            let found = match start {
                Some((_, Stored::Manifest(m))) => return self.latest_from(&Arc::from(m)).await,
                Some((v, Stored::Superseded(by))) => return self.climb(tenant, v.max(by)).await,
                // The hint is lost or wrong: version 1 is there for ever if there is any.
                None if had_none && self.highest(tenant, 0).await? == 0 => {
                    Arc::new(Manifest::empty(tenant.clone()))
                }
                None => self.climb(tenant, 0).await?,
            };
            match hint.filter(|hint| hint.is_certain && hint.version > found.version) {
                // The hint comes after the version: this read is older than that, or the version is gone.
                Some(_) if unseen < UNSEEN_MAX => {
                    self.clock().sleep(self.retry_for(0).backoff(unseen)).await;
                    unseen += 1;
                }
                Some(hint) => {
                    let by = self.layout().hint(tenant).to_string();
                    return Err(lost(tenant, found.version, hint.version, by));
                }
                None => return Ok(found),
            }
        }
    }

    /// The newest version, given one that is known.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Unavailable`].
    pub async fn latest_from(&self, known: &Arc<Manifest>) -> Result<Arc<Manifest>> {
        match self.stored(&known.tenant, known.version + 1).await? {
            None => Ok(Arc::clone(known)),
            Some(Stored::Manifest(next)) => self.climb_from(&known.tenant, Arc::from(next)).await,
            Some(Stored::Superseded(by)) => self.climb(&known.tenant, by).await,
        }
    }

    /// From a version that exists (or 0) to the newest one. Versions have no gap, so doubling steps find the end.
    async fn climb(&self, tenant: &TenantId, floor: u64) -> Result<Arc<Manifest>> {
        let mut floor = floor;
        let mut unseen = 0;
        loop {
            let top = self.highest(tenant, floor).await?;
            if top == 0 {
                match self.beginning(tenant).await? {
                    Beginning::Never => return Ok(Arc::new(Manifest::empty(tenant.clone()))),
                    Beginning::At(version) => floor = version,
                }
                continue;
            }
            match self.stored(tenant, top).await? {
                Some(Stored::Manifest(m)) => return self.climb_from(tenant, Arc::from(m)).await,
                Some(Stored::Superseded(by)) if by > top => floor = by,
                // A look has just found it: this read is older than that.
                None if unseen < UNSEEN_MAX => {
                    self.clock().sleep(self.retry_for(0).backoff(unseen)).await;
                    unseen += 1;
                }
                _ => {
                    let path = self.layout().manifest(tenant, top);
                    return Err(Error::corrupt(
                        path,
                        "it is the newest version and has no content",
                    ));
                }
            }
        }
    }

    async fn climb_from(&self, tenant: &TenantId, mut known: Arc<Manifest>) -> Result<Arc<Manifest>> {
        // Mostly there is nothing above, or one more.
        for _ in 0..4 {
            match self.stored(tenant, known.version + 1).await? {
                None => return Ok(known),
                Some(Stored::Manifest(next)) => known = Arc::from(next),
                Some(Stored::Superseded(by)) => return Box::pin(self.climb(tenant, by)).await,
            }
        }
        Box::pin(self.climb(tenant, known.version)).await
    }

    /// The highest existing version, given one that exists (or 0).
    async fn highest(&self, tenant: &TenantId, floor: u64) -> Result<u64> {
        let exists = |v: u64| async move {
            Ok::<_, Error>(self.size(&self.layout().manifest(tenant, v)).await?.is_some())
        };
        let (mut low, mut step) = (floor, 1u64);
        while exists(low.saturating_add(step)).await? {
            low = low.saturating_add(step);
            step = step.saturating_mul(2);
        }
        // `low` exists, `low + step` does not.
        let mut high = low.saturating_add(step);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if exists(middle).await? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Commits a change: reads the newest version, applies `change`, and creates the next version; when another writer
    /// was faster, all over again from there. `change` may therefore run several times.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the writer's epoch was overtaken; whatever `change` returns; [`Error::DeadBlock`] or
    /// [`Error::Refused`] when the result breaks a rule; [`Error::Unknown`] when the storage stopped answering in the
    /// middle; [`Error::Contended`], [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn commit(
        &self,
        tenant: &TenantId,
        writer: &Writer,
        change: impl FnMut(&mut Manifest) -> Result<()> + Send,
    ) -> Result<Arc<Manifest>> {
        let base = self.latest(tenant).await?;
        self.commit_from(base, writer, change).await
    }

    /// As [`Self::commit`], starting from a version that is known, which saves a read when it is the newest.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub async fn commit_from(
        &self,
        base: Arc<Manifest>,
        writer: &Writer,
        change: impl FnMut(&mut Manifest) -> Result<()> + Send,
    ) -> Result<Arc<Manifest>> {
        self.commit_unless(base, writer, |_| false, change).await
    }

    /// As [`Self::commit_from`], but a version of which `is_done` holds is given as it is.
    async fn commit_unless(
        &self,
        base: Arc<Manifest>,
        writer: &Writer,
        is_done: impl Fn(&Manifest) -> bool + Send,
        mut change: impl FnMut(&mut Manifest) -> Result<()> + Send,
    ) -> Result<Arc<Manifest>> {
        let nonce = Nonce(self.rng().u128());
        let mut base = base;
        for _ in 0..RACES_MAX {
            if is_done(&base) {
                return Ok(base);
            }
            base.check_epoch(writer)?;
            let mut next = Manifest::clone(&base);
            change(&mut next)?;
            next.seal(&base, writer, nonce, self.clock().now_ms())?;
            match self.try_commit(&next).await? {
                Attempt::Committed => {
                    self.put_hint(&next).await;
                    return Ok(Arc::new(next));
                }
                Attempt::Lost(Some(other)) => base = other,
                Attempt::Lost(None) => base = self.latest(&base.tenant).await?,
                // The winner's object is not visible yet: the next round asks again.
                Attempt::Undecided => {}
            }
        }
        Err(Error::Contended {
            tenant: base.tenant.clone(),
            version: base.version + 1,
            attempts: RACES_MAX,
        })
    }

    /// Commits an empty first version where there is none, before anything of a tenant is uploaded: whole blocks of a tenant without
    /// a version are, once they are old, what is left of a manifest that is lost, and beside one they are uploads that were never listed.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub async fn begin(&self, tenant: &TenantId, writer: &Writer) -> Result<Arc<Manifest>> {
        let base = self.latest(tenant).await?;
        self.begin_from(base, writer).await
    }

    /// As [`Self::begin`], starting from a version that is known. Where another writer is faster, its version is the first one.
    pub(crate) async fn begin_from(&self, base: Arc<Manifest>, writer: &Writer) -> Result<Arc<Manifest>> {
        self.commit_unless(base, writer, |m| m.version > 0, |_| Ok(()))
            .await
    }

    async fn try_commit(&self, next: &Manifest) -> Result<Attempt> {
        let path = self.layout().manifest(&next.tenant, next.version);
        let json = serde_json::to_vec(next).map_err(|e| Error::corrupt(&path, e))?;
        let bytes = json.len() + ENVELOPE_START.len() + 8 + ENVELOPE_MIDDLE.len() + ENVELOPE_END.len();
        if bytes > MANIFEST_BYTES_MAX {
            // Nobody could read it, and its number would be taken for ever.
            return Err(Error::Refused {
                tenant: next.tenant.clone(),
                reason: format!("it would have {bytes} bytes, limit {MANIFEST_BYTES_MAX}"),
            });
        }
        let unknown = |e: Error| match e {
            Error::Unavailable { reason, .. } | Error::Rejected { reason, .. } => Error::Unknown {
                tenant: next.tenant.clone(),
                version: next.version,
                reason,
            },
            other => other,
        };
        let created = self.create(&path, &encode(&json)).await.map_err(|e| match e {
            // What was refused at once did not happen.
            Error::Rejected { attempts: 1, .. } => e,
            e => unknown(e),
        });
        match created? {
            Created::Yes => Ok(Attempt::Committed),
            // The object may be our own, from an attempt whose answer was lost.
            Created::Exists => Ok(
                match self.stored(&next.tenant, next.version).await.map_err(unknown)? {
                    Some(Stored::Manifest(m)) if m.nonce == next.nonce => Attempt::Committed,
                    Some(Stored::Manifest(m)) => Attempt::Lost(Some(Arc::from(m))),
                    Some(Stored::Superseded(_)) => Attempt::Lost(None),
                    None => Attempt::Undecided,
                },
            ),
        }
    }

    /// Best effort: a stale or lost hint costs requests, nothing else.
    pub(crate) async fn put_hint(&self, committed: &Manifest) {
        let path = self.layout().hint(&committed.tenant);
        if let Err(error) = self
            .put(&path, &Hint::encode(&committed.tenant, committed.version))
            .await
        {
            tracing::warn!(tenant = %committed.tenant, version = committed.version, %error, "manifest hint not written");
        }
    }

    /// Creates a version as it is, whatever came before it.
    pub(crate) async fn create_version(&self, manifest: &Manifest) -> Result<Created> {
        let path = self.layout().manifest(&manifest.tenant, manifest.version);
        let json = serde_json::to_vec(manifest).map_err(|e| Error::corrupt(&path, e))?;
        self.create(&path, &encode(&json)).await
    }

    /// Makes the writer's epoch visible, so that holders of lower ones are fenced: what a new owner does first.
    /// Nothing is committed when the manifest shows the epoch already.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub async fn claim(&self, tenant: &TenantId, writer: &Writer) -> Result<Arc<Manifest>> {
        let base = self.latest(tenant).await?;
        self.claim_from(base, writer).await
    }

    /// As [`Self::claim`], starting from a version that is known.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub(crate) async fn claim_from(&self, base: Arc<Manifest>, writer: &Writer) -> Result<Arc<Manifest>> {
        base.check_epoch(writer)?;
        if base.epochs.get(&writer.resource) == Some(&writer.epoch) {
            return Ok(base);
        }
        self.commit_from(base, writer, |_| Ok(())).await
    }

    /// Drops the content of the versions below `keep_from`, the oldest first and at most some hundreds at a time; gives how
    /// many. Their objects stay, a few bytes each: a writer that slept can then never commit over a version that once existed.
    /// Where a rebuild passed over `keep_from`, or wrote it, there is nothing to go by, and nothing is dropped.
    ///
    /// # Errors
    /// [`Error::Refused`] when `keep_from` does not exist, else [`Error::Corrupt`] or [`Error::Unavailable`].
    pub async fn drop_history(&self, tenant: &TenantId, keep_from: u64) -> Result<u64> {
        match self.stored(tenant, keep_from).await? {
            // By a word on it, what is dropped from before the rebuild would look as if that had passed it over.
            Some(Stored::Manifest(m)) if m.rebuilt == keep_from => return Ok(0),
            Some(Stored::Manifest(_)) => {}
            Some(Stored::Superseded(_)) => return Ok(0),
            None => {
                return Err(Error::Refused {
                    tenant: tenant.clone(),
                    reason: format!("version {keep_from} does not exist"),
                });
            }
        }
        // Upward, so that those without content are always all below those with it: of those since a rebuild, and of those before it.
        let first = self.first_with_content(tenant, keep_from).await?;
        let versions = match self.left_before_rebuild(tenant, first).await? {
            Some(before) => before,
            None => first..keep_from,
        };
        let end = versions.end.min(versions.start.saturating_add(DROPPED_MAX));
        self.supersede(tenant, versions.start..=end.saturating_sub(1), keep_from, 1)
            .await?;
        Ok(end.saturating_sub(versions.start))
    }

    /// The lowest version with content in the run of such ones that ends before `end`; `end` when there is none.
    async fn first_with_content(&self, tenant: &TenantId, end: u64) -> Result<u64> {
        let (mut first, mut high) = (1, end);
        while first < high {
            let middle = first + (high - first) / 2;
            match self.stored(tenant, middle).await? {
                Some(Stored::Superseded(_)) => first = middle + 1,
                _ => high = middle,
            }
        }
        Ok(first)
    }

    /// If `rebuilt` is a rebuilt version: those with content from before it, below those that it passed over, which have a word on it: on
    /// those that were dropped before or since is one on another version.
    async fn left_before_rebuild(&self, tenant: &TenantId, rebuilt: u64) -> Result<Option<Range<u64>>> {
        match self.stored(tenant, rebuilt).await? {
            Some(Stored::Manifest(m)) if m.rebuilt == rebuilt => {}
            _ => return Ok(None),
        }
        let (mut passed, mut high) = (1, rebuilt);
        while passed < high {
            let middle = passed + (high - passed) / 2;
            match self.stored(tenant, middle).await? {
                Some(Stored::Superseded(by)) if by == rebuilt => high = middle,
                // It puts its word on the last thousands only.
                None => high = middle,
                _ => passed = middle + 1,
            }
        }
        let first = self.first_with_content(tenant, passed).await?;
        Ok((first < passed).then_some(first..passed))
    }

    /// Replaces versions, or the lack of them, by a word on a later one that exists, the lowest first.
    pub(crate) async fn supersede(
        &self,
        tenant: &TenantId,
        versions: RangeInclusive<u64>,
        superseded_by: u64,
        at_a_time: usize,
    ) -> Result<()> {
        let json = serde_json::to_vec(&Superseded { superseded_by })
            .map_err(|e| Error::corrupt(self.layout().manifest(tenant, superseded_by), e))?;
        let marker = &encode(&json);
        let put = |version| async move { self.put(&self.layout().manifest(tenant, version), marker).await };
        let puts = stream::iter(versions).map(put).buffered(at_a_time);
        puts.try_collect().await
    }
}

enum Attempt {
    Committed,
    /// Another writer has the version; its manifest, if it still has content.
    Lost(Option<Arc<Manifest>>),
    Undecided,
}

#[cfg(test)]
mod tests {
    use koios_model::PartitionId;
    use koios_runtime::{RealClock, RngHandle};
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn who_loses_the_race_for_the_first_version_takes_that_of_the_other() {
        let (store, clock) = (Arc::new(InMemory::new()), Arc::new(RealClock::new()));
        let open = |seed| Bucket::new(store.clone(), "", clock.clone(), RngHandle::from_seed(seed));
        let (a, b) = (open(1), open(2));
        let tenant = TenantId::anonymous();
        let writer = |n| Writer::partition("test", PartitionId(n), 1);
        let seen = b.latest(&tenant).await.unwrap();
        let first = a.begin(&tenant, &writer(0)).await.unwrap();
        let begun = b.begin_from(seen, &writer(1)).await.unwrap();
        assert_eq!((begun.version, begun.nonce), (1, first.nonce));
        assert_eq!(b.latest(&tenant).await.unwrap().version, 1);
    }
}
