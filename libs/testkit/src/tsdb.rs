//! Writes small blocks of Prometheus' TSDB, by its description of the format, for tests of what reads them.
//!
//! **Source**: Prometheus `tsdb/docs/format`.

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, Labels, ResetHint, STALE_NAN_BITS, Span};

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

fn uvarint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn varint(out: &mut Vec<u8>, n: i64) {
    uvarint(out, (n << 1 ^ n >> 63) as u64);
}

/// Bits, most significant first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, bits: u64, n: u32) {
        for i in (0..n).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if bits >> i & 1 == 1 {
                *self.bytes.last_mut().expect("a byte was pushed") |= 0x80 >> (self.used % 8);
            }
            self.used += 1;
        }
    }

    fn varint(&mut self, n: i64) {
        let mut bytes = Vec::new();
        varint(&mut bytes, n);
        bytes.iter().for_each(|b| self.put(u64::from(*b), 8));
    }

    fn uvarint(&mut self, n: u64) {
        let mut bytes = Vec::new();
        uvarint(&mut bytes, n);
        bytes.iter().for_each(|b| self.put(u64::from(*b), 8));
    }

    /// `ones` ones and a zero, and then a number of `width` bits.
    fn prefixed(&mut self, ones: u32, number: u64, width: u32) {
        self.put((1 << (ones + 1)) - 2, ones + 1);
        self.put(number, width);
    }

    fn varbit_int(&mut self, n: i64) {
        let fits = |width: u32| -((1i64 << (width - 1)) - 1) <= n && n <= 1 << (width - 1);
        if n == 0 {
            return self.put(0, 1);
        }
        for (ones, width) in [3, 6, 9, 12, 18, 25, 56].into_iter().enumerate() {
            if fits(width) {
                return self.prefixed(ones as u32 + 1, n as u64, width);
            }
        }
        self.put(0xff, 8);
        self.put(n as u64, 64);
    }

    fn varbit_uint(&mut self, n: u64) {
        if n == 0 {
            return self.put(0, 1);
        }
        for (ones, width) in [3, 6, 9, 12, 18, 25, 56].into_iter().enumerate() {
            if n < 1 << width {
                return self.prefixed(ones as u32 + 1, n, width);
            }
        }
        self.put(0xff, 8);
        self.put(n, 64);
    }

    fn float(&mut self, v: f64) {
        self.put(v.to_bits(), 64);
    }
}

#[derive(Clone, Copy)]
struct Xor {
    bits: u64,
    window: Option<(u32, u32)>,
}

impl Xor {
    fn new(v: f64) -> Self {
        Self {
            bits: v.to_bits(),
            window: None,
        }
    }

    /// What changes, and whether it fits the window before.
    fn change(&mut self, v: f64) -> (u64, bool) {
        let delta = self.bits ^ v.to_bits();
        let (leading, trailing) = (delta.leading_zeros().min(31), delta.trailing_zeros());
        let fits = self.window.is_some_and(|(l, t)| leading >= l && trailing >= t);
        if delta != 0 && !fits {
            self.window = Some((leading, trailing));
        }
        self.bits = v.to_bits();
        (delta, fits)
    }

    fn put_window(&self, bits: &mut Bits) {
        let (leading, trailing) = self.window.expect("a window");
        bits.put(u64::from(leading), 5);
        bits.put(u64::from((64 - leading - trailing) % 64), 6);
    }

    fn put_delta(&self, bits: &mut Bits, delta: u64) {
        let (leading, trailing) = self.window.expect("a window");
        bits.put(delta >> trailing, 64 - leading - trailing);
    }

    fn next(&mut self, bits: &mut Bits, v: f64) {
        let (delta, fits) = self.change(v);
        match (delta, fits) {
            (0, _) => bits.put(0, 1),
            (_, true) => {
                bits.put(0b10, 2);
                self.put_delta(bits, delta);
            }
            _ => {
                bits.put(0b11, 2);
                self.put_window(bits);
                self.put_delta(bits, delta);
            }
        }
    }
}

/// Start timestamps: the header byte, and what is written after each sample.
#[derive(Default)]
struct Starts {
    header: u8,
    start: i64,
    before: i64,
}

impl Starts {
    fn put(&mut self, bits: &mut Bits, i: usize, sample: &TsdbSample, previous: i64) {
        let changes_on = usize::from(self.header & 0x7f);
        if i == 0 {
            if sample.start != 0 {
                self.header |= 0x80;
                bits.varint(sample.t - sample.start);
            }
        } else if changes_on > 0 {
            bits.varbit_int((previous - sample.start) - self.before);
            self.before = previous - sample.start;
        } else if sample.start != self.start || i == 127 {
            self.header |= i as u8;
            self.before = previous - sample.start;
            bits.varbit_int(self.before);
        }
        self.start = sample.start;
    }
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

fn float_of(sample: &TsdbSample) -> f64 {
    match &sample.value {
        Value::Float(v) => *v,
        Value::Histogram(_) => panic!("a histogram in a chunk of floats"),
    }
}

fn xor(chunk: &TsdbChunk) -> Bits {
    let mut bits = Bits::default();
    let (mut t, mut step, mut value) = (0i64, 0i64, Xor::new(0.0));
    for (i, sample) in chunk.samples.iter().enumerate() {
        let v = float_of(sample);
        let now = sample.t.wrapping_sub(t);
        match i {
            0 => {
                bits.varint(sample.t);
                bits.float(v);
                value = Xor::new(v);
            }
            1 => {
                bits.uvarint(now as u64);
                value.next(&mut bits, v);
            }
            _ => {
                let change = now.wrapping_sub(step);
                let fits = |width: u32| -((1i64 << (width - 1)) - 1) <= change && change <= 1 << (width - 1);
                match [14, 17, 20]
                    .into_iter()
                    .enumerate()
                    .find(|(_, width)| fits(*width))
                {
                    _ if change == 0 => bits.put(0, 1),
                    Some((ones, width)) => bits.prefixed(ones as u32 + 1, change as u64, width),
                    None => {
                        bits.put(0b1111, 4);
                        bits.put(change as u64, 64);
                    }
                }
                value.next(&mut bits, v);
            }
        }
        (t, step) = (sample.t, if i == 0 { 0 } else { now });
    }
    bits
}

fn xor2(chunk: &TsdbChunk) -> (Bits, Starts) {
    let (mut bits, mut starts) = (Bits::default(), Starts::default());
    let (mut t, mut step, mut value) = (0i64, 0i64, Xor::new(0.0));
    let is_stale = |v: f64| v.to_bits() == STALE_NAN_BITS;
    for (i, sample) in chunk.samples.iter().enumerate() {
        let v = float_of(sample);
        let now = sample.t.wrapping_sub(t);
        let alone = |bits: &mut Bits, value: &mut Xor| {
            if is_stale(v) {
                return bits.put(0b111, 3);
            }
            let (delta, fits) = value.change(v);
            match (delta, fits) {
                (0, _) => bits.put(0, 1),
                (_, true) => {
                    bits.put(0b10, 2);
                    value.put_delta(bits, delta);
                }
                _ => {
                    bits.put(0b110, 3);
                    value.put_window(bits);
                    value.put_delta(bits, delta);
                }
            }
        };
        match i {
            0 => {
                bits.varint(sample.t);
                bits.float(v);
                if !is_stale(v) {
                    value = Xor::new(v);
                }
            }
            1 => {
                bits.uvarint(now as u64);
                alone(&mut bits, &mut value);
            }
            _ => {
                let change = now.wrapping_sub(step);
                if change != 0 {
                    match change {
                        -4096..=4095 => bits.prefixed(2, change as u64, 13),
                        -524_288..=524_287 => bits.prefixed(3, change as u64, 20),
                        _ => bits.prefixed(4, change as u64, 64),
                    }
                    alone(&mut bits, &mut value);
                } else if is_stale(v) {
                    bits.put(0b11111, 5);
                } else {
                    let (delta, fits) = value.change(v);
                    match (delta, fits) {
                        (0, _) => bits.put(0, 1),
                        (_, true) => {
                            bits.put(0b100, 3);
                            value.put_delta(&mut bits, delta);
                        }
                        _ => {
                            bits.put(0b101, 3);
                            value.put_window(&mut bits);
                            value.put_delta(&mut bits, delta);
                        }
                    }
                }
            }
        }
        starts.put(&mut bits, i, sample, t);
        (t, step) = (sample.t, if i == 0 { 0 } else { now });
    }
    (bits, starts)
}

fn spans(bits: &mut Bits, spans: &[Span]) {
    bits.varbit_uint(spans.len() as u64);
    for span in spans {
        bits.varbit_uint(u64::from(span.length));
        bits.varbit_int(i64::from(span.offset));
    }
}

fn layout(bits: &mut Bits, h: &Histogram) {
    let exponent = h.zero_threshold.log2();
    if h.zero_threshold == 0.0 {
        bits.put(0, 8);
    } else if exponent.fract() == 0.0 && (-243.0..=10.0).contains(&exponent) {
        bits.put((exponent + 244.0) as u64, 8);
    } else {
        bits.put(255, 8);
        bits.float(h.zero_threshold);
    }
    bits.varbit_int(i64::from(h.schema));
    spans(bits, &h.positive_spans);
    spans(bits, &h.negative_spans);
    if h.schema == CUSTOM_BOUNDS_SCHEMA {
        bits.varbit_uint(h.custom_bounds.len() as u64);
        for bound in &h.custom_bounds {
            let thousandths = bound * 1000.0;
            if (0.0..=33_554_430.0).contains(&thousandths) && (thousandths.round() / 1000.0) == *bound {
                bits.varbit_uint(thousandths.round() as u64 + 1);
            } else {
                bits.put(0, 1);
                bits.float(*bound);
            }
        }
    }
}

/// Whole numbers: each bucket differs from the one before.
fn whole(buckets: &[f64]) -> Vec<i64> {
    let mut before = 0;
    let delta = |b: &f64| {
        let delta = *b as i64 - before;
        before = *b as i64;
        delta
    };
    buckets.iter().map(delta).collect()
}

fn histograms(chunk: &TsdbChunk, encoding: u8, with_starts: bool, is_whole: bool) -> (u8, Vec<u8>) {
    let (mut bits, mut starts) = (Bits::default(), Starts::default());
    let (mut t, mut step) = (0i64, 0i64);
    let mut counts: Vec<(i64, i64)> = Vec::new();
    let mut floats: Vec<Xor> = Vec::new();
    let mut sum = Xor::new(0.0);
    let mut gauge = false;
    for (i, sample) in chunk.samples.iter().enumerate() {
        let Value::Histogram(h) = &sample.value else {
            panic!("a float in a chunk of histograms")
        };
        gauge |= h.reset_hint == ResetHint::Gauge;
        let stale = h.is_stale();
        let buckets = || h.positive_buckets.iter().chain(&h.negative_buckets);
        let numbers: Vec<i64> = [h.count as i64, h.zero_count as i64]
            .into_iter()
            .chain(whole(&h.positive_buckets))
            .chain(whole(&h.negative_buckets))
            .collect();
        let values: Vec<f64> = [h.count, h.zero_count]
            .into_iter()
            .chain(buckets().copied())
            .collect();
        if i == 0 {
            layout(&mut bits, h);
            bits.varbit_int(sample.t);
            if is_whole {
                bits.varbit_uint(numbers[0] as u64);
                bits.varbit_uint(numbers[1] as u64);
                bits.float(h.sum);
                numbers[2..].iter().for_each(|n| bits.varbit_int(*n));
                counts = numbers.iter().map(|n| (*n, 0)).collect();
            } else {
                bits.float(values[0]);
                bits.float(values[1]);
                bits.float(h.sum);
                values[2..].iter().for_each(|v| bits.float(*v));
                floats = values.iter().map(|v| Xor::new(*v)).collect();
            }
            sum = Xor::new(h.sum);
        } else {
            let now = sample.t - t;
            bits.varbit_int(now - step);
            step = now;
            let upto = if stale { 2 } else { values.len() };
            for at in 0..upto {
                if at == 2 {
                    sum.next(&mut bits, h.sum);
                }
                if is_whole {
                    let (before, delta) = counts[at];
                    let now = numbers[at] - before;
                    bits.varbit_int(if stale { 0 } else { now - delta });
                    counts[at] = (numbers[at], now);
                } else {
                    floats[at].next(&mut bits, values[at]);
                }
            }
            if upto == 2 {
                sum.next(&mut bits, h.sum);
            }
        }
        if with_starts {
            starts.put(&mut bits, i, sample, t);
        }
        t = sample.t;
    }
    let flags = if gauge { 0b11u16 } else { 0 };
    let count = chunk.samples.len() as u16;
    let header = match with_starts {
        true => [&(flags << 14 | count).to_be_bytes()[..], &[starts.header]].concat(),
        false => [&count.to_be_bytes()[..], &[(flags << 6) as u8]].concat(),
    };
    (encoding, [header, bits.bytes].concat())
}
