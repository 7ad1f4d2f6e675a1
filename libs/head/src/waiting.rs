//! Sealing beside appending, while a log is replayed. Decoding and encoding full runs is a third of the work of applying batches,
//! and needs nothing of what appending changes but where chunks lie. So while a head is lent out so ([`Head::begin_deferring`]) it
//! only copies the entries of full runs aside; somebody else seals those of the time before ([`Sealing::run`]), and
//! [`Head::end_deferring`] hangs the chunks into the lists of their series.
//!
//! Whatever looks at sealed chunks has to wait meanwhile. Late samples do, which may have to be compared with them; but those that
//! only repeat an open sample, as what a snapshot has of the log after it does, go at once.

use koios_chunk::{Encoder, decode_open};
use koios_model::{Sample, window_start};

use crate::apply::{Applied, Tally};
use crate::chunks::{Chunks, New};
use crate::head::{Head, encode_chunks};
use crate::open::{Hot, Pool};
use crate::series::UNCUT;

/// What waits in a head.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Full runs are copied here instead of being sealed, and late samples.
    pub(crate) is_open: bool,
    runs: Runs,
    late: Vec<Late>,
}

/// Full runs.
#[derive(Debug, Default)]
struct Runs {
    all: Vec<Run>,
    /// Their entries, one after the other.
    entries: Vec<u8>,
}

#[derive(Debug)]
struct Run {
    index: u32,
    samples: u16,
    /// Where its entries end.
    end: usize,
}

/// Late samples of a series, from a position of the log.
#[derive(Debug)]
struct Late {
    index: u32,
    samples: Vec<Sample>,
    lsn: u64,
}

impl Waiting {
    /// Ends the run of a series, to be sealed later.
    pub(crate) fn take(&mut self, index: u32, hot: &mut Hot, pool: &mut Pool) {
        let samples = hot.count;
        pool.copy_onto(hot, &mut self.runs.entries);
        pool.release(hot);
        let end = self.runs.entries.len();
        self.runs.all.push(Run { index, samples, end });
    }

    /// Keeps late samples.
    pub(crate) fn take_late(&mut self, index: u32, samples: &[Sample], lsn: u64) {
        self.late.push(Late {
            index,
            samples: samples.to_vec(),
            lsn,
        });
    }
}

/// Full runs of a head to be sealed, with what it lends for that.
#[derive(Debug)]
pub struct Sealing {
    runs: Runs,
    chunks: Chunks,
    encoder: Encoder,
    window_ms: i64,
    chunk_samples_max: usize,
    /// Series and the entries of their chunks, in order.
    sealed: Vec<(u32, u32)>,
}

impl Sealing {
    /// Whether there is nothing to seal.
    pub fn is_empty(&self) -> bool {
        self.runs.all.is_empty()
    }

    /// Seals them.
    #[expect(
        clippy::expect_used,
        reason = "a failure here is a bug that would otherwise lose samples"
    )]
    pub fn run(&mut self) {
        let (mut ts, mut vs, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
        let mut from = 0;
        for run in &self.runs.all {
            let entries = self.runs.entries.get(from..run.end).unwrap_or_default();
            from = run.end;
            ts.clear();
            vs.clear();
            let decoded = decode_open(entries, usize::from(run.samples), &mut ts, &mut vs);
            decoded.expect("the open samples of a series are the entries that were appended");
            let (chunks, sealed, window_ms) = (&mut self.chunks, &mut self.sealed, self.window_ms);
            encode_chunks(
                &mut self.encoder,
                &mut encoded,
                self.chunk_samples_max,
                (&ts, &vs),
                |range, samples, bytes| {
                    let new = New {
                        group: (window_start(range.min, window_ms), UNCUT),
                        range,
                        samples: samples as u32,
                        bytes,
                    };
                    sealed.push((run.index, chunks.add(new)));
                },
            );
        }
    }
}

impl Head {
    /// Whether [`Self::begin_deferring`] is allowed: no sample has a start timestamp.
    pub fn may_defer(&self) -> bool {
        self.starts.is_empty()
    }

    /// Leaves sealing to others until [`Self::end_deferring`]: meanwhile nothing but batches of floats without start timestamps may
    /// be applied, and nothing read. Gives the runs that wait since the last time.
    pub fn begin_deferring(&mut self) -> Sealing {
        self.waiting.is_open = true;
        self.lend_chunks()
    }

    /// Takes back what was lent, with what was sealed; then nothing of late samples waits, but full runs may. Gives what became of late
    /// samples.
    pub fn end_deferring(&mut self, sealing: Sealing) -> Applied {
        self.waiting.is_open = false;
        self.take_sealed(sealing);
        let mut applied = Applied::default();
        let late = std::mem::take(&mut self.waiting.late);
        if !late.is_empty() {
            self.seal_waiting();
        }
        for mut late in late {
            let mut tally = Tally::new(late.lsn);
            let late_ones = (&mut late.samples[..], &[][..]);
            self.append_late(late.index, late_ones, false, &mut tally, &mut applied);
            self.settle(&mut tally);
        }
        applied
    }

    /// Seals what waits: before anything but [`Self::begin_deferring`].
    pub fn seal_waiting(&mut self) {
        if !self.waiting.runs.all.is_empty() {
            let mut sealing = self.lend_chunks();
            sealing.run();
            self.take_sealed(sealing);
        }
    }

    fn lend_chunks(&mut self) -> Sealing {
        Sealing {
            runs: std::mem::take(&mut self.waiting.runs),
            chunks: std::mem::take(&mut self.chunks),
            encoder: std::mem::take(&mut self.encoder),
            window_ms: self.windows.width_ms(),
            chunk_samples_max: self.chunk_samples_max(),
            sealed: Vec::new(),
        }
    }

    fn take_sealed(&mut self, sealing: Sealing) {
        (self.chunks, self.encoder) = (sealing.chunks, sealing.encoder);
        for (index, id) in sealing.sealed {
            self.chunks.link(&mut self.series.cold[index as usize].sealed, id);
        }
    }

    /// Whether a sample is one of the open ones of its series, which ends later. They are decoded once for all samples of a call, into
    /// `open`, which is given back with [`Head::give_columns`].
    pub(crate) fn repeats_open(
        &mut self,
        index: u32,
        s: Sample,
        open: &mut Option<(Vec<i64>, Vec<f64>)>,
    ) -> bool {
        let hot = &self.series.hot[index as usize];
        if open.is_none() && self.pool.range(hot).is_none_or(|range| !range.contains(s.t)) {
            return false;
        }
        let (ts, vs) = open.get_or_insert_with(|| {
            let (mut ts, mut vs) = self.take_columns();
            if self
                .pool
                .decode(&self.series.hot[index as usize], &mut ts, &mut vs)
                .is_err()
            {
                ts.clear();
            }
            (ts, vs)
        });
        let held = ts.binary_search(&s.t).ok().and_then(|at| vs.get(at));
        held.is_some_and(|v| v.to_bits() == s.v.to_bits())
    }
}
