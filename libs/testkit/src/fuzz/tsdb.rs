//! Prometheus' blocks: any files are refused, or read as sound series.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use koios_model::TimeRange;
use koios_tsdb::{MemoryFiles, ReadStats, Result, TsdbBlock, TsdbSeries};

use super::choices::Choices;
use super::tsdb_seal::seal;

/// What an input consists of, in this order; each file after its length in two bytes, the most significant one first. One of
/// no length is not there.
const FILES: [&str; 5] = [
    "meta.json",
    "index",
    "chunks/000001",
    "chunks/000002",
    "tombstones",
];

/// What a run of the target saw, for tests that want to know that it saw something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TsdbRead {
    /// Series that were read.
    pub series: usize,
    /// Whether the block was refused in the end.
    pub refused: bool,
}

/// Reads bytes as the files of a block. With an odd first byte their checksums are made right first, so that what they
/// guard is read. The second byte says where two windows meet that share the block among them.
///
/// # Panics
/// When the reader panics, gives series out of order or samples that are not sound, or when the windows do not have
/// together what the whole has.
pub fn tsdb_read(input: &[u8]) -> TsdbRead {
    let mut choices = Choices::new(input);
    let (seals, cut) = (choices.byte() % 2 == 1, choices.byte());
    let mut files = unpacked(choices.rest());
    if seals {
        seal(&mut files);
    }
    block_on(read_block(files, cut))
}

/// The files in an input.
fn unpacked(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in FILES {
        let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
            break;
        };
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (file, rest) = rest.split_at(len);
        if !file.is_empty() {
            files.insert(name.to_owned(), file.to_vec());
        }
        bytes = rest;
    }
    files
}

/// The input that the files of a block are read from: those of [`tsdb_read`] that fit it.
pub fn tsdb_input(choices: [u8; 2], files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut input = choices.to_vec();
    for name in FILES {
        let file = files.get(name).map_or(&[][..], Vec::as_slice);
        let len = u16::try_from(file.len()).unwrap_or(u16::MAX);
        input.extend(len.to_be_bytes());
        input.extend(file.iter().take(usize::from(len)));
    }
    input
}

async fn read_block(files: BTreeMap<String, Vec<u8>>, cut: u8) -> TsdbRead {
    const REFUSED: TsdbRead = TsdbRead {
        series: 0,
        refused: true,
    };
    let Ok(block) = TsdbBlock::open(Arc::new(MemoryFiles::new(files))).await else {
        return REFUSED;
    };
    let mut ends: Option<TimeRange> = None;
    let scanned = block.scan_chunks(|chunk| {
        ends = Some(ends.map_or(chunk, |all| all.union(&chunk)));
        Ok(())
    });
    // What it says of its series may be wrong and they be right: they are looked at all the same.
    let counted = scanned.await.is_ok();
    let Some(ends) = ends else {
        return TsdbRead {
            refused: !counted,
            ..TsdbRead::default()
        };
    };
    let Ok((whole, of_whole)) = read_window(&block, TimeRange::ALL).await else {
        return REFUSED;
    };
    let span = i128::from(ends.max) - i128::from(ends.min);
    let at = i128::from(ends.min) + span * i128::from(cut) / 256;
    let at = i64::try_from(at).unwrap_or(i64::MAX);
    let mut parts: BTreeMap<String, (Vec<String>, Vec<i64>)> = BTreeMap::new();
    let mut samples = 0;
    let windows = [Some(i64::MIN..=at), at.checked_add(1).map(|from| from..=i64::MAX)];
    for window in windows.into_iter().flatten() {
        let window = TimeRange::new(*window.start(), *window.end());
        let Ok((series, stats)) = read_window(&block, window).await else {
            panic!("a window of a sound block is refused");
        };
        samples += stats.samples;
        for of in series {
            let (shown, starts) = shown(&of);
            let part = parts.entry(of.labels.to_string()).or_default();
            part.0.extend(shown);
            part.1.extend(starts);
        }
    }
    assert_eq!(samples, of_whole.samples, "windows share all samples");
    assert_eq!(parts.len(), whole.len(), "windows have all series");
    for series in &whole {
        assert_eq!(
            parts.get(&series.labels.to_string()),
            Some(&shown(series)),
            "windows have what {} has",
            series.labels
        );
    }
    TsdbRead {
        series: whole.len(),
        refused: !counted,
    }
}

/// The samples of a window, which are sound.
async fn read_window(block: &TsdbBlock, window: TimeRange) -> Result<(Vec<TsdbSeries>, ReadStats)> {
    // As an import leaves them out.
    let external = block.meta().external.iter();
    let external = external.filter(|(name, value)| !name.starts_with("__") && !value.is_empty());
    let external = external
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut reader = block.series(window, &external);
    let mut all: Vec<TsdbSeries> = Vec::new();
    while let Some(series) = reader.next().await? {
        assert!(
            all.last().is_none_or(|last| last.labels < series.labels),
            "{} is in label order",
            series.labels
        );
        check(&series, window);
        all.push(series);
    }
    Ok((all, reader.stats()))
}

fn check(series: &TsdbSeries, window: TimeRange) {
    let labels = &series.labels;
    let floats: Vec<i64> = series.samples.iter().map(|s| s.t).collect();
    let histograms: Vec<i64> = series.histograms.iter().map(|(t, _)| *t).collect();
    let starts: Vec<i64> = series.starts.iter().map(|(t, _)| *t).collect();
    for times in [&floats, &histograms, &starts] {
        assert!(times.is_sorted_by(|a, b| a < b), "times of {labels} ascend");
        assert!(
            times.iter().all(|t| window.contains(*t)),
            "those of {labels} are in time"
        );
    }
    assert!(
        floats.iter().all(|t| histograms.binary_search(t).is_err()),
        "{labels} has one sample at a time"
    );
    for (_, histogram) in &series.histograms {
        let mut canonical = histogram.as_ref().clone();
        canonical.make_canonical();
        assert!(
            canonical.bits_cmp(histogram).is_eq(),
            "{histogram:?} is canonical"
        );
    }
}

/// Samples with their bits, ascending in time, and the times of starts.
fn shown(series: &TsdbSeries) -> (Vec<String>, Vec<i64>) {
    let floats = series
        .samples
        .iter()
        .map(|s| (s.t, format!("{:x}", s.v.to_bits())));
    let histograms = series.histograms.iter().map(|(t, h)| (*t, format!("{h:?}")));
    let mut all: Vec<(i64, String)> = floats.chain(histograms).collect();
    all.sort();
    let all = all.into_iter().map(|(t, sample)| format!("{t} {sample}"));
    (all.collect(), series.starts.iter().map(|(t, _)| *t).collect())
}
