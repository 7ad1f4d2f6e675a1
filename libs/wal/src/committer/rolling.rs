//! Begins the next segment, and refuses what finds no room.
//!
//! What tenants send never takes space from the disk reserve. What must be logged before space can be given back may: when a
//! whole segment would not leave the reserve free, it goes on in the segment there is, and then in small ones, which nothing
//! else is written to. Of that only what gives space back takes the second half, as it must not lack room for what was to go before.

use std::sync::Arc;

use koios_runtime::Disk;

use super::{Committer, Prepared, size_of};
use crate::error::NoRoom;
use crate::format::SEGMENT_HEADER_BYTES;
use crate::segment::{Active, NewSegment};
use crate::{Apply, Error, Lsn, ReserveUse, Result};

impl<A: Apply> Committer<A> {
    /// Begins a new segment for `group`, if there is room for one, and returns what of it may be written to the segment that
    /// is active then, prepared for it.
    pub(super) async fn roll(&mut self, group: Vec<Prepared<A>>) -> Result<Vec<Prepared<A>>> {
        let next = self
            .active
            .number()
            .checked_add(1)
            .ok_or_else(|| Error::Exhausted {
                dir: self.shared.settings.dir.clone(),
                what: "segment number",
            })?;
        let group = self.prepare_for(group, next).await?;
        if group.is_empty() {
            return Ok(group);
        }
        let new = Arc::new(self.next_segment(next, size_of(&group)).await?);
        let reason = match self.begin(Arc::clone(&new), NewSegment::create).await {
            Ok(()) => return Ok(group),
            Err(error) => NoRoom::of(error)?,
        };
        let (mut group, mut reason) = (group, reason);
        for least in [ReserveUse::Half, ReserveUse::All] {
            let (system, others) = group.into_iter().partition(|p| p.reserve() >= least);
            self.refuse(others, reason);
            // The segment there is may have room for what is left.
            let system = self.prepare_for(system, self.active.number()).await?;
            if system.is_empty() || self.goes_here(&system) {
                return Ok(system);
            }
            let system = self.prepare_for(system, next).await?;
            let reserve = match system.iter().all(|p| p.reserve() == ReserveUse::All) {
                true => 0,
                false => self.shared.settings.reserve_bytes / 2,
            };
            let bytes = size_of(&system) as u64;
            let create = move |new: &NewSegment, disk: &dyn Disk| new.create_for_system(disk, bytes, reserve);
            match self.begin(Arc::clone(&new), create).await {
                Ok(()) => return Ok(system),
                Err(error) => (group, reason) = (system, NoRoom::of(error)?),
            }
        }
        self.refuse(group, reason);
        Ok(Vec::new())
    }

    async fn prepare_for(&self, group: Vec<Prepared<A>>, segment: u32) -> Result<Vec<Prepared<A>>> {
        let again = group.into_iter().map(|p| p.waiting).collect();
        self.prepare(again, segment).await
    }

    async fn next_segment(&self, number: u32, group_bytes: usize) -> Result<NewSegment> {
        let settings = &self.shared.settings;
        let apply = Arc::clone(&self.apply);
        let start = Lsn::new(number, SEGMENT_HEADER_BYTES as u32);
        Ok(NewSegment {
            dir: settings.dir.clone(),
            identity: self.shared.reader.identity,
            number,
            previous_end: self.active.position().offset(),
            checkpoint: self.cpu.run(move || apply.checkpoint(start)).await?,
            group_bytes: group_bytes as u64,
            segment_bytes: settings.segment_bytes,
            asked_bytes: self.apply.segment_bytes(),
            reserve_bytes: settings.reserve_bytes,
            takes_all: true,
        })
    }

    async fn begin(
        &mut self,
        new: Arc<NewSegment>,
        create: impl FnOnce(&NewSegment, &dyn Disk) -> Result<Active> + Send + 'static,
    ) -> Result<()> {
        let old = self.active.clone();
        let active = self
            .disk
            .run(move |d| -> Result<Active> {
                // What stands behind its end would be read back.
                old.clear().map_err(|e| new.classify(d, e, 0))?;
                let active = create(&new, d)?;
                if let Err(error) = old.seal() {
                    tracing::warn!(%error, "unused space of a full segment stays reserved");
                }
                Ok(active)
            })
            .await?;
        let mut state = self.shared.state.lock();
        state.segments.push(active.number());
        state.synced = active.position();
        drop(state);
        self.active = active;
        self.apply.begun(self.active.number());
        Ok(())
    }

    /// Answers that there is no room.
    pub(super) fn refuse(&self, group: Vec<Prepared<A>>, reason: NoRoom) {
        if group.is_empty() {
            return;
        }
        let settings = &self.shared.settings;
        let error = reason.error(settings);
        tracing::warn!(%error, records = group.len(), "write-ahead log takes no records");
        for Prepared { waiting, .. } in group {
            self.apply.give_up(waiting.append.entry);
            // The caller may have gone.
            let _ = waiting.reply.send(Err(reason.error(settings)));
        }
    }
}
