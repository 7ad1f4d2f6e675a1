//! Metadata of metrics: of what was acknowledged the one admitted last is told, or one admitted later that was sent.

use std::collections::BTreeMap;

use koios_model::{Labels, Metadata};
use koios_testkit::oracle::{Judged, Oracle, Violation};

/// Metadata as it was sent: when it was admitted decides which stays.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    admitted_ms: i64,
    metadata: Metadata,
}

impl Judged for Described {
    /// A metric has one at all times.
    fn time(&self) -> i64 {
        0
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.admitted_ms, &self.metadata) == (other.admitted_ms, &other.metadata)
    }

    fn wins_over(&self, other: &Self) -> bool {
        (self.admitted_ms, &self.metadata) >= (other.admitted_ms, &other.metadata)
    }

    fn tell(&self) -> String {
        format!("{:?}, admitted at {}", self.metadata, self.admitted_ms)
    }
}

/// The metadata of one place.
#[derive(Clone, Debug, Default)]
pub(crate) struct MetadataJudge {
    oracle: Oracle<Described>,
    /// When what was sent was admitted, the last time.
    admitted: BTreeMap<(String, Metadata), i64>,
}

fn described(admitted_ms: i64, all: &[(String, Metadata)]) -> Vec<(Labels, Vec<Described>)> {
    let of_metric = |(metric, metadata): &(String, Metadata)| {
        let metadata = metadata.clone();
        let one = Described {
            admitted_ms,
            metadata,
        };
        (Labels::from_pairs([("__name__", metric)]), vec![one])
    };
    all.iter().map(of_metric).collect()
}

impl MetadataJudge {
    pub(crate) fn sent(&mut self, admitted_ms: i64, all: &[(String, Metadata)]) {
        self.oracle.sent(&described(admitted_ms, all));
        for sent in all {
            let last = self.admitted.entry(sent.clone()).or_insert(admitted_ms);
            *last = admitted_ms.max(*last);
        }
    }

    pub(crate) fn acknowledged(&mut self, admitted_ms: i64, all: &[(String, Metadata)]) {
        self.oracle.acknowledged(&described(admitted_ms, all));
    }

    /// Judges what was told by what was acknowledged before. Where a disk has lied some of that may be lost.
    pub(crate) fn read(
        &self,
        before: &Self,
        told: &[(String, Metadata)],
        may_lack: bool,
    ) -> Result<(), Violation> {
        let mut found: BTreeMap<Labels, Vec<Described>> = BTreeMap::new();
        for one in told {
            let admitted_ms = self.admitted.get(one).copied().unwrap_or(0);
            for (labels, described) in described(admitted_ms, std::slice::from_ref(one)) {
                found.entry(labels).or_default().extend(described);
            }
        }
        self.oracle.check_genuine(&found)?;
        match may_lack {
            true => Ok(()),
            false => before.oracle.check_complete(&found),
        }
    }
}
