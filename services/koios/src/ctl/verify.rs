//! `koios ctl blocks verify`: every byte of every block.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::ArgMatches;
use koios_block::{BlockId, BlockMeta, PartSummary};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Unlisted};
use koios_model::TenantId;
use koios_runtime::with_sources;

use super::report::{ProgressLine, bytes};
use super::storage::Storage;

/// Uploads that are not listed may be on their way for so long.
pub(super) const UPLOAD_MS: i64 = 24 * 3_600_000;

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let storage = Storage::open_existing(matches)?;
    let line = ProgressLine::new(Arc::clone(&storage.runtime.clock));
    let (mut findings, mut blocks, mut read) = (0usize, 0usize, 0u64);
    let mut is_of_koios = false;
    for tenant in storage.tenants(matches).await? {
        let mut told = |what: String| {
            line.clear();
            say!("{tenant}: {what}");
            findings += 1;
        };
        // Listed before the manifest is read: what is uploaded and listed after that is not missed.
        let uploaded = storage.bucket.uploaded_blocks(&tenant).await?;
        is_of_koios |= !uploaded.is_empty();
        let manifest = match storage.bucket.latest(&tenant).await {
            Ok(manifest) => {
                // Any folder may be called like a tenant.
                is_of_koios |= manifest.version > 0;
                manifest
            }
            Err(e) => {
                told(unusable(&e));
                continue;
            }
        };
        let before = storage.runtime.clock.now_ms().saturating_sub(UPLOAD_MS);
        let mut of_uploads = objects(&manifest, &uploaded);
        match storage.bucket.unlisted(&manifest, uploaded, before).await {
            Ok(found) => of_uploads.extend(unlisted(&tenant, &found)),
            Err(e @ BucketError::Lost { .. }) => told(unusable(&e)),
            Err(e) => return Err(e.into()),
        }
        still_true(&storage, &manifest, of_uploads)
            .await?
            .into_iter()
            .for_each(&mut told);
        line.begin(tenant.to_string());
        let total: u64 = manifest.blocks.iter().map(ManifestBlock::bytes).sum();
        let mut done = 0u64;
        for listed in &manifest.blocks {
            line.at(done as f64 / total.max(1) as f64, || {
                format!("of {}, {}", bytes(total), listed.block)
            });
            if let Err(what) = Box::pin(one(&storage, &tenant, listed)).await {
                let found = vec![(listed.block, what)];
                let found = still_true(&storage, &manifest, found).await?;
                found.into_iter().for_each(&mut told);
            }
            done += listed.bytes();
            blocks += 1;
        }
        read += done;
    }
    line.clear();
    ensure!(
        is_of_koios || findings > 0 || storage.bucket.has_cluster().await?,
        "nothing of Koios is at {}: is it the cluster's bucket, with its prefix? Of an all-in-one process it is the folder `bucket` \
         in its data-dir",
        storage.bucket.url()
    );
    say!("{blocks} blocks with {} read, {findings} findings", bytes(read));
    Ok(match findings {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn unusable(e: &BucketError) -> String {
    format!(
        "the manifest cannot be used: {}; see `koios ctl manifest rebuild --help`",
        with_sources(e)
    )
}

/// Findings of blocks that are not dead by now: what is merged or deleted while this runs may go, and what was on its way is listed.
async fn still_true(
    storage: &Storage,
    manifest: &Arc<Manifest>,
    found: Vec<(BlockId, String)>,
) -> Result<Vec<String>> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let now = storage.bucket.latest_from(manifest).await?;
    let is_true = |(block, _): &(BlockId, String)| {
        let is_new = manifest.block(*block).is_none() && now.block(*block).is_some();
        !now.is_dead(*block) && !is_new
    };
    let found = found.into_iter().filter(is_true);
    Ok(found.map(|(_, what)| what).collect())
}

/// Blocks that no manifest knows, and what becomes of them.
fn unlisted(tenant: &TenantId, found: &Unlisted) -> Vec<(BlockId, String)> {
    let orphans = found.orphans.iter().map(|(block, parts)| {
        let what = format!(
            "block {block}: in no manifest, with {} objects: it was never listed, and a store deletes it",
            parts.len()
        );
        (*block, what)
    });
    let unknown = found.unknown.iter().map(|block| {
        let what = format!(
            "block {block}: in no manifest, and older than it, or its meta.json is damaged or not handed out: nobody can say that it was never listed, so \
             that it is kept; if it is of no use, `koios ctl blocks delete --tenant {tenant} {block}` has it deleted"
        );
        (*block, what)
    });
    orphans.chain(unknown).collect()
}

/// Objects of listed blocks that should be there and are not, and the other way round.
fn objects(manifest: &Manifest, uploaded: &[(BlockId, Vec<String>)]) -> Vec<(BlockId, String)> {
    let uploaded: BTreeMap<BlockId, BTreeSet<&str>> = uploaded
        .iter()
        .map(|(block, parts)| (*block, parts.iter().map(String::as_str).collect()))
        .collect();
    let none = BTreeSet::new();
    let mut found = Vec::new();
    for listed in &manifest.blocks {
        let block = listed.block;
        let there = uploaded.get(&block).unwrap_or(&none);
        for part in listed.parts.iter().filter(|p| !there.contains(p.name.as_str())) {
            found.push((block, format!("block {block}: {} is missing", part.name)));
        }
        for part in there
            .iter()
            .filter(|name| !listed.parts.iter().any(|p| p.name == **name))
        {
            found.push((block, format!("block {block}: {part} is in no manifest")));
        }
    }
    found
}

async fn one(storage: &Storage, tenant: &TenantId, listed: &ManifestBlock) -> Result<(), String> {
    let block = listed.block;
    let said = |e: &dyn std::error::Error| {
        let text = with_sources(e);
        match text.contains(&block.to_string()) {
            true => text,
            false => format!("block {block}: {text}"),
        }
    };
    let reader = super::inspect::open(storage, tenant, listed)
        .await
        .map_err(|e| said(&e))?;
    if let Some(differs) = differs(reader.meta(), listed) {
        return Err(format!(
            "block {block}: meta.json and the manifest have another {differs}"
        ));
    }
    let source = storage.bucket.range_read(tenant, block);
    let checked = koios_block::verify_checksums(&source, reader.meta()).await;
    checked.map_err(|e| said(&e))?;
    koios_block::verify(&reader).await.map_err(|e| said(&e))
}

/// The first thing that a block's metadata and the manifest say differently.
fn differs(meta: &BlockMeta, listed: &ManifestBlock) -> Option<&'static str> {
    let expected = ManifestBlock::new(meta, BTreeMap::new());
    [
        ("range", expected.range == listed.range),
        ("window", expected.window == listed.window),
        ("resolution", expected.resolution_ms == listed.resolution_ms),
        ("level", expected.level == listed.level),
        ("number of series", expected.series == listed.series),
        ("number of samples", expected.samples == listed.samples),
        // Of summaries the manifest says which live blocks they speak for.
        (
            "list of sources",
            listed.resolution_ms != 0 || expected.sources == listed.sources,
        ),
        (
            "version it is clean up to",
            // A deletion that deletes nothing of it leaves the block as it is.
            expected.clean_up_to <= listed.clean_up_to,
        ),
        ("list of parts", same_parts(&expected, listed)),
    ]
    .into_iter()
    .find_map(|(what, same)| (!same).then_some(what))
}

/// Whether both list the same parts: by their names and bytes. What else is told of them helps readers, and versions of the program that
/// do not know it forget it in each manifest that they commit.
fn same_parts(a: &ManifestBlock, b: &ManifestBlock) -> bool {
    let of_part = |part: &PartSummary| (part.name.clone(), part.bytes, part.crc32c);
    a.parts.iter().map(of_part).eq(b.parts.iter().map(of_part))
}

#[cfg(test)]
mod tests {
    use koios_block::{BlockOptions, BlockWriter};
    use koios_bucket::{Bucket, Writer};
    use koios_model::{Labels, TimeRange};
    use koios_runtime::Runtime;
    use object_store::memory::InMemory;

    use super::*;

    fn id(n: u128) -> BlockId {
        BlockId::new(1_700_000_000_000, n)
    }

    fn entry(tenant: &TenantId, n: u128) -> ManifestBlock {
        let options = BlockOptions::new(id(n), tenant.clone(), TimeRange::new(0, 7_199_999));
        let mut out = BlockWriter::new(options).unwrap();
        let labels = Labels::from_pairs([("__name__", "m")]);
        out.push_series(&labels, None, &[1], &[1.0]).unwrap();
        let parts = out.finish().unwrap().unwrap();
        ManifestBlock::new(&parts.meta, BTreeMap::new())
    }

    #[test]
    fn what_other_versions_forget_of_parts_is_no_finding() {
        let options = BlockOptions::new(id(1), TenantId::anonymous(), TimeRange::ALL);
        let mut out = BlockWriter::new(options).unwrap();
        let labels = Labels::from_pairs([("__name__", "m")]);
        let times: Vec<i64> = (0..20_000).collect();
        let values = times.iter().map(|&t| (t as f64).sqrt());
        let values: Vec<f64> = values.collect();
        out.push_series(&labels, None, &times, &values).unwrap();
        let meta = out.finish().unwrap().unwrap().meta;
        let mut listed = ManifestBlock::new(&meta, BTreeMap::new());
        assert!(
            listed
                .parts
                .iter()
                .any(|p| p.end_in_meta && p.end_cell_bytes.is_some())
        );
        for part in &mut listed.parts {
            part.end_in_meta = false;
            part.end_cell_bytes = None;
        }
        assert_eq!(differs(&meta, &listed), None);
        listed.parts[0].crc32c ^= 1;
        assert_eq!(differs(&meta, &listed), Some("list of parts"));
    }

    #[tokio::test]
    async fn what_was_merged_deleted_or_listed_meanwhile_is_no_finding() {
        let runtime = Runtime::real().unwrap();
        let store = Arc::new(InMemory::new());
        let bucket = Bucket::new(store, "", Arc::clone(&runtime.clock), runtime.rng.fork());
        let storage = Storage { runtime, bucket };
        let (tenant, writer) = (TenantId::anonymous(), Writer::compaction("test", 1));
        let commit = async |change: &mut (dyn FnMut(&mut Manifest) -> koios_bucket::Result<()> + Send)| {
            storage.bucket.commit(&tenant, &writer, change).await.unwrap()
        };
        let seen = commit(&mut |m| {
            m.add_block(entry(&tenant, 1))?;
            m.add_block(entry(&tenant, 2))
        })
        .await;
        let found = || {
            (1..=4)
                .map(|n| (id(n), format!("finding {n}")))
                .collect::<Vec<_>>()
        };
        let told = still_true(&storage, &seen, found()).await.unwrap();
        assert_eq!(told.len(), 4, "nothing changed: {told:?}");
        // The first one is merged, the third, whose upload was found, is listed; of the fourth nothing is heard.
        commit(&mut |m| {
            m.remove_block(id(1));
            m.add_block(entry(&tenant, 3))
        })
        .await;
        let told = still_true(&storage, &seen, found()).await.unwrap();
        assert_eq!(told, ["finding 2", "finding 4"]);
        assert!(still_true(&storage, &seen, Vec::new()).await.unwrap().is_empty());
    }
}
