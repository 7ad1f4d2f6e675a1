//! How much of a disk is left to others.

use std::path::PathBuf;

use koios_runtime::{Disk, DiskError, DiskNeeds, DiskSpace};

use super::DiskCacheSettings;

/// Of a small disk this part is left free, however much else is asked for.
const PART_OF_SMALL: u64 = 10;

/// Bytes that another needs free, if it is on the same file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReserve {
    /// Where it writes.
    pub folder: PathBuf,
    /// So many, beside what is left free for anybody.
    pub bytes: u64,
    /// And what it says by itself that it needs.
    pub needs: DiskNeeds,
}

/// Bytes that are to stay free where the cache is.
pub(super) fn left_free(disk: &dyn Disk, settings: &DiskCacheSettings) -> Result<u64, DiskError> {
    let own = disk.space(&settings.folder)?;
    let mut reserves = Vec::with_capacity(settings.reserves.len());
    for reserve in &settings.reserves {
        let bytes = reserve.bytes.saturating_add(reserve.needs.bytes());
        match disk.space(&reserve.folder) {
            Ok(space) => reserves.push((space, bytes)),
            // Wherever it will be: until it is there it may be here.
            Err(e) if e.is_not_found() => reserves.push((own, bytes)),
            Err(e) => return Err(e),
        }
    }
    Ok(left_free_of(own, settings.free_min, &reserves))
}

fn left_free_of(own: DiskSpace, free_min: u64, reserves: &[(DiskSpace, u64)]) -> u64 {
    let beside = reserves.iter().filter(|(space, _)| space.device == own.device);
    let beside: u64 = beside.map(|(_, bytes)| bytes).sum();
    free_min.min(own.total / PART_OF_SMALL).saturating_add(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_disks_and_disks_of_others_are_left_their_share() {
        let disk = |device, total| DiskSpace { device, total };
        let (gib, large) = (1u64 << 30, disk(1, 100 << 30));
        assert_eq!(left_free_of(large, gib, &[]), gib);
        assert_eq!(left_free_of(disk(1, 5 << 30), gib, &[]), gib / 2);
        // An ingester's reserve counts where it writes to the same disk.
        let reserves = [(large, 3 * gib), (disk(2, 100 << 30), 7 * gib)];
        assert_eq!(left_free_of(large, gib, &reserves), 4 * gib);
        assert_eq!(left_free_of(disk(1, 10), 4, &[(large, u64::MAX)]), u64::MAX);
    }
}
