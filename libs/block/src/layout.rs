//! How a block's parts are laid out, for people who look into one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_schema::Schema;
use parquet::file::metadata::ParquetMetaData;

use crate::Result;
use crate::reader::BlockReader;
use crate::times::TimesTable;

/// A Parquet part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PartLayout {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Rows of each row group.
    pub row_groups: Vec<u64>,
    /// Its columns, in order.
    pub columns: Vec<ColumnLayout>,
}

/// A column over all row groups.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ColumnLayout {
    /// Its name, with those of what it is inside of.
    pub name: String,
    /// Encodings of its pages, levels included.
    pub encodings: Vec<String>,
    /// Bytes as stored.
    pub bytes: u64,
    /// Bytes before compression.
    pub uncompressed_bytes: u64,
}

impl BlockReader {
    /// How the parts are laid out. Reads their footers.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn part_layouts(&self) -> Result<Vec<PartLayout>> {
        let mut layouts = vec![layout(
            self.series.part().part(),
            self.series.footer().await?.metadata(),
        )];
        let others = [
            Some(&self.samples),
            self.times.as_ref().map(TimesTable::part),
            self.histograms.as_ref(),
            self.exemplars.as_ref(),
        ];
        for part in others.into_iter().flatten() {
            let footer = part.footer(Arc::<Schema>::clone).await?;
            layouts.push(layout(part.part(), footer.metadata()));
        }
        Ok(layouts)
    }
}

fn layout(part: &crate::PartMeta, footer: &ParquetMetaData) -> PartLayout {
    let mut columns: Vec<ColumnLayout> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut encodings: Vec<BTreeSet<String>> = Vec::new();
    for group in footer.row_groups() {
        for column in group.columns() {
            let name = column.column_path().string();
            let place = *places.entry(name.clone()).or_insert_with(|| {
                encodings.push(BTreeSet::new());
                columns.push(ColumnLayout {
                    name,
                    encodings: Vec::new(),
                    bytes: 0,
                    uncompressed_bytes: 0,
                });
                columns.len() - 1
            });
            if let (Some(known), Some(seen)) = (columns.get_mut(place), encodings.get_mut(place)) {
                known.bytes += u64::try_from(column.compressed_size()).unwrap_or(0);
                known.uncompressed_bytes += u64::try_from(column.uncompressed_size()).unwrap_or(0);
                seen.extend(column.encodings().map(|e| e.to_string()));
            }
        }
    }
    for (column, encodings) in columns.iter_mut().zip(encodings) {
        column.encodings = encodings.into_iter().collect();
    }
    PartLayout {
        name: part.name.clone(),
        bytes: part.bytes,
        row_groups: footer
            .row_groups()
            .iter()
            .map(|g| u64::try_from(g.num_rows()).unwrap_or(0))
            .collect(),
        columns,
    }
}
