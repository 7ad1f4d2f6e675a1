//! `koios ctl blocks inspect`: one block, looked into.

use std::sync::Arc;

use anyhow::Result;
use clap::ArgMatches;
use koios_block::{BlockCache, BlockId, BlockMeta, BlockReader, PartLayout};
use koios_bucket::{Blocks, ManifestBlock};
use koios_model::{Matchers, TenantId, TimeRange};

use super::report::{bytes, time};
use super::storage::Storage;

/// Bytes kept of what is read.
const CELLS_BYTES: u64 = 64 << 20;
/// The same for footers and page indexes.
const INDEX_BYTES: u64 = 64 << 20;

pub(super) async fn run(matches: &ArgMatches) -> Result<()> {
    let storage = Storage::open_existing(matches)?;
    let name = matches.get_one::<String>("block").map_or("", String::as_str);
    let Ok(block) = name.parse::<BlockId>() else {
        anyhow::bail!("{name:?} is no block's name: see `koios ctl blocks list`");
    };
    let (tenant, listed) = find(&storage, matches, block).await?;
    let reader = open(&storage, &tenant, &listed).await?;
    let layouts = reader.part_layouts().await?;
    let labels = labels(&reader).await?;
    let most = matches.get_one::<usize>("labels").copied().unwrap_or_default();
    if matches.get_flag("json") {
        say!("{}", as_json(reader.meta(), &layouts, &labels));
    } else {
        print(reader.meta(), &layouts, &labels, most);
    }
    Ok(())
}

/// Whose block it is.
async fn find(storage: &Storage, matches: &ArgMatches, block: BlockId) -> Result<(TenantId, ManifestBlock)> {
    for tenant in storage.tenants(matches).await? {
        let manifest = storage.bucket.latest(&tenant).await?;
        if let Some(listed) = manifest.block(block) {
            return Ok((tenant, listed.clone()));
        }
        anyhow::ensure!(
            !manifest.is_dead(block),
            "block {block} of tenant {tenant} was merged or deleted"
        );
    }
    anyhow::bail!("no tenant's manifest lists block {block}: see `koios ctl blocks list`")
}

pub(super) async fn open(
    storage: &Storage,
    tenant: &TenantId,
    listed: &ManifestBlock,
) -> Result<BlockReader, koios_bucket::Error> {
    let cache = Arc::new(BlockCache::new(CELLS_BYTES, INDEX_BYTES));
    let blocks = Blocks::new(storage.bucket.clone(), cache, 0).with_cpu(storage.runtime.cpu.clone());
    blocks.open(tenant, listed).await
}

/// How many values each label has, those with the most first.
async fn labels(reader: &BlockReader) -> Result<Vec<(String, usize)>> {
    let any = Matchers::default();
    let mut labels = Vec::new();
    for name in reader.label_names(&any, TimeRange::ALL).await?.iter() {
        let values = reader.label_values(name, &any, TimeRange::ALL).await?;
        labels.push((name.to_owned(), values.len()));
    }
    labels.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(labels)
}

fn as_json(meta: &BlockMeta, layouts: &[PartLayout], labels: &[(String, usize)]) -> serde_json::Value {
    // Checksums of cells, and the ends of parts, are most of it, and nobody reads them.
    let mut without_cells = serde_json::to_value(meta).unwrap_or_default();
    for part in without_cells["parts"].as_array_mut().into_iter().flatten() {
        if let Some(part) = part.as_object_mut() {
            for name in ["cells", "small_cells", "end"] {
                part.remove(name);
            }
        }
    }
    serde_json::json!({ "meta": without_cells, "parts": layouts, "labels": labels.iter().cloned().collect::<std::collections::BTreeMap<_, _>>() })
}

fn print(meta: &BlockMeta, layouts: &[PartLayout], labels: &[(String, usize)], most: usize) {
    say!(
        "block {} of tenant {}, format {}, written by {}",
        meta.block,
        meta.tenant,
        meta.format,
        meta.writer
    );
    say!(
        "  {} series, {} samples from {} to {}, level {}, clean of deletions up to version {}",
        meta.series,
        meta.samples,
        time(meta.range.min),
        time(meta.range.max),
        meta.level,
        meta.clean_up_to
    );
    say!("  window {} to {}", time(meta.window.min), time(meta.window.max));
    if !meta.sources.is_empty() {
        let sources: Vec<String> = meta.sources.iter().map(BlockId::to_string).collect();
        say!("  made from {}", sources.join(", "));
    }
    for part in layouts {
        let rows: u64 = part.row_groups.iter().sum();
        say!(
            "\n{}: {}, {rows} rows in {} row groups",
            part.name,
            bytes(part.bytes),
            part.row_groups.len()
        );
        for column in &part.columns {
            let per_row = column.bytes as f64 / rows.max(1) as f64;
            say!(
                "  {:<36} {:>10} {per_row:>8.3} B/row, {:>10} before compression, {}",
                column.name,
                bytes(column.bytes),
                bytes(column.uncompressed_bytes),
                column.encodings.join(" ")
            );
        }
    }
    say!("\nlabels with the most values:");
    for (name, values) in labels.iter().take(most) {
        say!("  {name:<36} {values:>10}");
    }
}
