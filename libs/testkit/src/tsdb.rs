//! Writes small blocks of Prometheus' TSDB, by its description of the format, for tests of what reads them.
//!
//! **Source**: Prometheus `tsdb/docs/format`.

mod bits;
mod floats;
mod histograms;
mod starts;

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{Histogram, Labels};

use bits::{uvarint, varint};
use floats::{xor, xor2};
use histograms::histograms;

/// How the samples of a chunk are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Floats.
    Xor,
    /// Floats with start timestamps.
    Xor2,
    /// Histograms with whole counts, with start timestamps or without.
    Histogram(bool),
    /// Histograms with float counts, with start timestamps or without.
    FloatHistogram(bool),
}

/// A float or a histogram.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A float.
    Float(f64),
    /// A histogram.
    Histogram(Histogram),
}

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub struct TsdbSample {
    /// When.
    pub t: i64,
    /// The start timestamp, 0 for none; only some chunks keep it.
    pub start: i64,
    /// What.
    pub value: Value,
}

/// A chunk: samples of one kind, ascending in time; histograms of one layout.
#[derive(Clone, Debug, PartialEq)]
pub struct TsdbChunk {
    /// How it is written.
    pub kind: ChunkKind,
    /// What it holds.
    pub samples: Vec<TsdbSample>,
}

/// A block.
#[derive(Clone, Debug)]
pub struct TsdbContent {
    /// Its name.
    pub ulid: String,
    /// Version of the index, 1 or 2.
    pub version: u8,
    /// Series with their chunks.
    pub series: BTreeMap<Labels, Vec<TsdbChunk>>,
    /// Deletions: the number of the series, first and last time.
    pub tombstones: Vec<(usize, i64, i64)>,
    /// More of `meta.json`: `"thanos":{…}`.
    pub more_meta: String,
    /// Chunks in a file.
    pub chunks_per_file: usize,
}

impl Default for TsdbContent {
    fn default() -> Self {
        Self {
            ulid: "01BKGTZQ1SYQJTR4PB43C8PD98".to_owned(),
            version: 2,
            series: BTreeMap::new(),
            tombstones: Vec::new(),
            more_meta: String::new(),
            chunks_per_file: 7,
        }
    }
}

impl TsdbContent {
    /// Adds a series of floats, a chunk for so many of them.
    #[must_use]
    pub fn with_floats(mut self, labels: Labels, samples: &[(i64, f64)], per_chunk: usize) -> Self {
        let sample = |&(t, v): &(i64, f64)| TsdbSample {
            t,
            start: 0,
            value: Value::Float(v),
        };
        let chunk = |samples: &[(i64, f64)]| TsdbChunk {
            kind: ChunkKind::Xor,
            samples: samples.iter().map(sample).collect(),
        };
        self.series
            .insert(labels, samples.chunks(per_chunk.max(1)).map(chunk).collect());
        self
    }

    /// The files of the block by name.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let places = self.write_chunks(&mut files);
        let (index, references) = self.index(&places);
        files.insert("index".to_owned(), index);
        files.insert("tombstones".to_owned(), self.tombstones(&references));
        files.insert("meta.json".to_owned(), self.meta().into_bytes());
        files
    }

    /// Writes the block into a folder of its name below `dir`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_to(&self, dir: &std::path::Path) -> std::io::Result<std::path::PathBuf> {
        let folder = dir.join(&self.ulid);
        std::fs::create_dir_all(folder.join("chunks"))?;
        for (name, bytes) in self.files() {
            std::fs::write(folder.join(name), bytes)?;
        }
        Ok(folder)
    }

    fn times(&self) -> impl Iterator<Item = i64> + '_ {
        self.series
            .values()
            .flatten()
            .flat_map(|c| &c.samples)
            .map(|s| s.t)
    }

    fn meta(&self) -> String {
        let samples = self.times().count();
        let (min, max) = (
            self.times().min().unwrap_or(0),
            self.times().max().unwrap_or(0) + 1,
        );
        let more = match self.more_meta.as_str() {
            "" => String::new(),
            more => format!(",{more}"),
        };
        format!(
            r#"{{"ulid":"{}","minTime":{min},"maxTime":{max},"stats":{{"numSamples":{samples},"numSeries":{},"numChunks":1}},"compaction":{{"level":1,"sources":["{}"]}},"version":1{more}}}"#,
            self.ulid,
            self.series.len(),
            self.ulid
        )
    }

    /// Writes all chunks, gives their references in order.
    fn write_chunks(&self, files: &mut BTreeMap<String, Vec<u8>>) -> Vec<u64> {
        let mut places = Vec::new();
        let all: Vec<&TsdbChunk> = self.series.values().flatten().collect();
        for (number, chunks) in all.chunks(self.chunks_per_file.max(1)).enumerate() {
            let mut file = vec![0x85, 0xbd, 0x40, 0xdd, 1, 0, 0, 0];
            for chunk in chunks {
                places.push((number as u64) << 32 | file.len() as u64);
                let (encoding, data) = encode(chunk);
                uvarint(&mut file, data.len() as u64);
                let checked = [&[encoding][..], &data].concat();
                file.extend(&checked);
                file.extend(crc32c::crc32c(&checked).to_be_bytes());
            }
            files.insert(format!("chunks/{:06}", number + 1), file);
        }
        places
    }

    /// The index, and how tombstones refer to each series.
    fn index(&self, places: &[u64]) -> (Vec<u8>, Vec<u64>) {
        let mut file = vec![0xba, 0xaa, 0xd7, 0x00, self.version];
        let symbols: BTreeSet<&str> = self
            .series
            .keys()
            .flat_map(|l| l.iter())
            .flat_map(|(n, v)| [n, v])
            .collect();
        let symbols_at = file.len() as u64;
        let mut content = (symbols.len() as u32).to_be_bytes().to_vec();
        let mut symbol_references = BTreeMap::new();
        for (i, symbol) in symbols.iter().enumerate() {
            let offset = symbols_at + 4 + content.len() as u64;
            symbol_references.insert(*symbol, if self.version == 1 { offset } else { i as u64 });
            uvarint(&mut content, symbol.len() as u64);
            content.extend(symbol.as_bytes());
        }
        section(&mut file, &content);
        let mut references = Vec::new();
        let mut places = places.iter();
        let mut series_at = 0;
        for (labels, chunks) in &self.series {
            if self.version != 1 {
                file.resize(file.len().next_multiple_of(16), 0);
            }
            if series_at == 0 {
                series_at = file.len() as u64;
            }
            references.push(if self.version == 1 {
                file.len() as u64
            } else {
                file.len() as u64 / 16
            });
            let mut entry = Vec::new();
            uvarint(&mut entry, labels.len() as u64);
            for (name, value) in labels.iter() {
                uvarint(&mut entry, symbol_references[name]);
                uvarint(&mut entry, symbol_references[value]);
            }
            uvarint(&mut entry, chunks.len() as u64);
            let mut before: Option<(i64, u64)> = None;
            for chunk in chunks {
                let ends = chunk.samples.first().zip(chunk.samples.last());
                let (min, max) = ends.map_or((0, 0), |(a, b)| (a.t, b.t));
                let place = places.next().copied().unwrap_or_default();
                match before {
                    None => {
                        varint(&mut entry, min);
                        uvarint(&mut entry, (max - min) as u64);
                        uvarint(&mut entry, place);
                    }
                    Some((last, reference)) => {
                        uvarint(&mut entry, min.wrapping_sub(last) as u64);
                        uvarint(&mut entry, (max - min) as u64);
                        varint(&mut entry, place.wrapping_sub(reference) as i64);
                    }
                }
                before = Some((max, place));
            }
            uvarint(&mut file, entry.len() as u64);
            file.extend(&entry);
            file.extend(crc32c::crc32c(&entry).to_be_bytes());
        }
        file.resize(file.len().next_multiple_of(4), 0);
        let postings_at = file.len() as u64;
        let mut postings = (references.len() as u32).to_be_bytes().to_vec();
        references
            .iter()
            .for_each(|r| postings.extend((*r as u32).to_be_bytes()));
        section(&mut file, &postings);
        let table_at = file.len() as u64;
        let mut table = 1u32.to_be_bytes().to_vec();
        table.extend([2, 0, 0]);
        uvarint(&mut table, postings_at);
        section(&mut file, &table);
        let toc: Vec<u8> = [symbols_at, series_at, 0, 0, postings_at, table_at]
            .iter()
            .flat_map(|o| o.to_be_bytes())
            .collect();
        file.extend(&toc);
        file.extend(crc32c::crc32c(&toc).to_be_bytes());
        (file, references)
    }

    fn tombstones(&self, references: &[u64]) -> Vec<u8> {
        let mut stones = Vec::new();
        for (series, min, max) in &self.tombstones {
            uvarint(&mut stones, references[*series]);
            varint(&mut stones, *min);
            varint(&mut stones, *max);
        }
        let mut file = vec![0x01, 0x30, 0xba, 0x30, 1];
        file.extend(&stones);
        file.extend(crc32c::crc32c(&stones).to_be_bytes());
        file
    }
}

fn section(file: &mut Vec<u8>, content: &[u8]) {
    file.extend((content.len() as u32).to_be_bytes());
    file.extend(content);
    file.extend(crc32c::crc32c(content).to_be_bytes());
}

/// The encoding's number and the bytes.
fn encode(chunk: &TsdbChunk) -> (u8, Vec<u8>) {
    let count = (chunk.samples.len() as u16).to_be_bytes();
    match chunk.kind {
        ChunkKind::Xor => (1, [&count[..], &xor(chunk).bytes].concat()),
        ChunkKind::Xor2 => {
            let (bits, starts) = xor2(chunk);
            (4, [&count[..], &[starts.header], &bits.bytes].concat())
        }
        ChunkKind::Histogram(starts) => histograms(chunk, if starts { 5 } else { 2 }, starts, true),
        ChunkKind::FloatHistogram(starts) => histograms(chunk, if starts { 6 } else { 3 }, starts, false),
    }
}
