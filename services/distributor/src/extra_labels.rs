//! Labels that whoever sends a request wants all its series to have.

use koios_wire::remote_write::{EncodedLabels, RawLabel, RawMetadata, RawSeries, Sink};

/// Hands series on with some labels more, which win over labels of the same names.
pub(crate) struct WithLabels<'a, 's, S> {
    sink: &'s mut S,
    more: &'a [(String, String)],
    labels: Vec<RawLabel<'a>>,
}

impl<'a, 's, S: Sink<'a>> WithLabels<'a, 's, S> {
    pub(crate) fn new(sink: &'s mut S, more: &'a [(String, String)]) -> Self {
        Self {
            sink,
            more,
            labels: Vec::new(),
        }
    }
}

impl<'a, S: Sink<'a>> Sink<'a> for WithLabels<'a, '_, S> {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let own = |label: &&RawLabel<'a>| !self.more.iter().any(|(name, _)| name.as_bytes() == label.0);
        self.labels.clear();
        self.labels.extend(series.labels.iter().filter(own));
        // Where labels were left out for their number, that number is too many whatever was replaced.
        let all = series.label_count == series.labels.len();
        let replaced = if all {
            series.labels.len() - self.labels.len()
        } else {
            0
        };
        let more = self
            .more
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        self.labels.extend(more);
        self.sink.series(RawSeries {
            encoded_labels: EncodedLabels::default(),
            labels: &self.labels,
            label_count: series
                .label_count
                .saturating_sub(replaced)
                .saturating_add(self.more.len()),
            ..series
        });
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) {
        self.sink.metadata(metadata);
    }

    fn refused(&self) -> u64 {
        self.sink.refused()
    }

    fn hold(&mut self, bytes: usize) {
        self.sink.hold(bytes);
    }

    fn is_over(&self) -> bool {
        self.sink.is_over()
    }
}

/// Hands series on with one label more where they do not have it.
pub(crate) struct WithDefault<'a, 's, S> {
    sink: &'s mut S,
    label: Option<RawLabel<'a>>,
    labels: Vec<RawLabel<'a>>,
}

impl<'a, 's, S: Sink<'a>> WithDefault<'a, 's, S> {
    pub(crate) fn new(sink: &'s mut S, label: Option<RawLabel<'a>>) -> Self {
        Self {
            sink,
            label,
            labels: Vec::new(),
        }
    }
}

impl<'a, S: Sink<'a>> Sink<'a> for WithDefault<'a, '_, S> {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let missing = |label: &RawLabel<'a>| !series.labels.iter().any(|own| own.0 == label.0);
        let Some(label) = self.label.filter(missing) else {
            return self.sink.series(series);
        };
        self.labels.clear();
        self.labels.extend_from_slice(series.labels);
        self.labels.push(label);
        self.sink.series(RawSeries {
            encoded_labels: EncodedLabels::default(),
            labels: &self.labels,
            label_count: series.label_count.saturating_add(1),
            ..series
        });
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) {
        self.sink.metadata(metadata);
    }

    fn refused(&self) -> u64 {
        self.sink.refused()
    }

    fn hold(&mut self, bytes: usize) {
        self.sink.hold(bytes);
    }

    fn is_over(&self) -> bool {
        self.sink.is_over()
    }
}
