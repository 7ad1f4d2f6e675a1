//! What a head takes, by part.

use koios_model::Sample;

use crate::head::Head;

/// Estimates of the memory that the parts of a head hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadMemory {
    /// Strings of labels.
    pub symbols: usize,
    /// Identity, labels and state of series.
    pub series: usize,
    /// Postings.
    pub index: usize,
    /// Blocks of open samples.
    pub open: usize,
    /// Sealed chunks and their entries.
    pub sealed: usize,
    /// Late samples, unsealed native histograms and unsealed start timestamps.
    pub side: usize,
    /// Exemplars and metadata.
    pub beside: usize,
}

impl HeadMemory {
    /// Each by name.
    pub fn parts(&self) -> [(&'static str, usize); 7] {
        [
            ("symbols", self.symbols),
            ("series", self.series),
            ("index", self.index),
            ("open", self.open),
            ("sealed", self.sealed),
            ("side", self.side),
            ("beside", self.beside),
        ]
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Head {
    /// Estimate of the memory held, by part.
    pub fn memory(&self) -> HeadMemory {
        HeadMemory {
            symbols: self.symbols.memory_bytes(),
            series: self.series.memory_bytes(),
            index: self.index.memory_bytes(),
            open: self.pool.memory_bytes(),
            sealed: self.chunks.memory_bytes(),
            side: self.side_samples * size_of::<Sample>() + self.histogram_bytes + self.starts.memory_bytes(),
            beside: self.exemplars.memory_bytes() + self.metadata.memory_bytes(),
        }
    }

    /// Estimate of the memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory().total()
    }
}
