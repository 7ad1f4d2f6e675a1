//! What a client is told beside the result: warnings and infos, in Prometheus' words.
//!
//! **Source:** Prometheus `util/annotations`.

use std::collections::BTreeMap;

use crate::ast::Span;
use crate::number::{format_g, format_g2};

/// How much an annotation matters, most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Warning,
    Info,
}

/// What grows when the same annotation comes again.
#[derive(Clone, Copy, Debug)]
enum Detail {
    /// Nothing.
    Plain,
    /// The extent of repairs to classic histograms.
    Monotonicity {
        min_ms: i64,
        max_ms: i64,
        lowest: f64,
        highest: f64,
        diff: f64,
        samples: u64,
    },
    /// How often start timestamps overlapped.
    Overlaps(u64),
}

#[derive(Clone, Copy, Debug)]
struct Annotation {
    span: Span,
    detail: Detail,
}

/// A set of annotations: equal texts count once, the latest position is kept.
#[derive(Clone, Debug, Default)]
pub struct Annotations {
    by_text: BTreeMap<(Level, String), Annotation>,
    /// What storage wants to be told, without a position.
    storage: Vec<String>,
    /// Whether more came than are kept.
    omitted: bool,
}

/// Most annotations that are kept: some name metrics, of which there may be any number. These are the first in order, of
/// level and then text, of all that came: so it does not matter in which pieces, or after which others, they came.
const KEPT_MAX: usize = 1_000;

/// Longest text that is kept: names may be of any length.
const TEXT_BYTES_MAX: usize = 2_048;

/// Cuts a text that is too long.
fn shorten(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|&i| text.is_char_boundary(i));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
}

/// Annotations as text, with positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnotationTexts {
    /// Something may be wrong with the result.
    pub warnings: Vec<String>,
    /// Something worth knowing.
    pub infos: Vec<String>,
}

/// What was done to histograms when something noteworthy happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HistogramOperation {
    Addition,
    Subtraction,
    Aggregation,
}

impl HistogramOperation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Subtraction => "subtraction",
            Self::Aggregation => "aggregation",
        }
    }
}

const MIX: &str = "encountered a mix of histograms and floats for";

fn for_metric(text: &str, metric: &str) -> String {
    if metric.is_empty() {
        text.to_owned()
    } else {
        format!("{text} for metric name {metric:?}")
    }
}

impl Annotations {
    fn add(&mut self, level: Level, text: impl AsRef<str>, span: Span, detail: Detail) {
        let prefix = if level == Level::Warning {
            "PromQL warning: "
        } else {
            "PromQL info: "
        };
        let mut text = format!("{prefix}{}", text.as_ref());
        shorten(&mut text);
        self.insert((level, text), Annotation { span, detail });
    }

    fn insert(&mut self, key: (Level, String), new: Annotation) {
        if let Some(old) = self.by_text.get_mut(&key) {
            old.absorb(new);
            return;
        }
        if self.by_text.len() >= KEPT_MAX {
            self.omitted = true;
            match self.by_text.last_entry() {
                Some(last) if *last.key() > key => last.remove(),
                _ => return,
            };
        }
        self.by_text.insert(key, new);
    }

    fn warn(&mut self, text: impl AsRef<str>, span: Span) {
        self.add(Level::Warning, text, span, Detail::Plain);
    }

    fn info(&mut self, text: impl AsRef<str>, span: Span) {
        self.add(Level::Info, text, span, Detail::Plain);
    }

    /// Takes in what came later.
    pub(crate) fn merge(&mut self, later: Self) {
        for (key, annotation) in later.by_text {
            self.insert(key, annotation);
        }
        later
            .storage
            .into_iter()
            .for_each(|text| self.add_from_storage(text));
        self.omitted |= later.omitted;
    }

    /// A warning of storage's, shown as it is.
    pub(crate) fn add_from_storage(&mut self, text: String) {
        if self.storage.len() < KEPT_MAX && !self.storage.contains(&text) {
            self.storage.push(text);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_text.is_empty() && self.storage.is_empty()
    }

    /// As text; `query` is what the positions refer to.
    pub fn render(&self, query: &str) -> AnnotationTexts {
        let mut out = AnnotationTexts {
            warnings: self.storage.clone(),
            infos: Vec::new(),
        };
        for ((level, text), annotation) in &self.by_text {
            let text = annotation.render(text, query);
            match level {
                Level::Warning => out.warnings.push(text),
                Level::Info => out.infos.push(text),
            }
        }
        if self.omitted {
            out.warnings.push(format!(
                "more than {KEPT_MAX} annotations, the others are omitted"
            ));
        }
        out
    }
}

impl Annotation {
    fn absorb(&mut self, new: Self) {
        match (&mut self.detail, new.detail) {
            (
                Detail::Monotonicity {
                    min_ms,
                    max_ms,
                    lowest,
                    highest,
                    diff,
                    samples,
                },
                Detail::Monotonicity {
                    min_ms: a,
                    max_ms: b,
                    lowest: c,
                    highest: d,
                    diff: e,
                    samples: f,
                },
            ) => {
                *min_ms = (*min_ms).min(a);
                *max_ms = (*max_ms).max(b);
                *lowest = lowest.min(c);
                *highest = highest.max(d);
                *diff = diff.max(e);
                *samples += f;
            }
            (Detail::Overlaps(count), Detail::Overlaps(more)) => *count += more,
            _ => *self = new,
        }
    }

    fn render(&self, text: &str, query: &str) -> String {
        let at = self.span.position_in(query);
        match self.detail {
            Detail::Plain => format!("{text} ({at})"),
            Detail::Monotonicity {
                min_ms,
                max_ms,
                lowest,
                highest,
                diff,
                samples,
            } => format!(
                "{text}, from buckets {} to {}, with a max diff of {}, over {samples} samples from {} to {} ({at})",
                format_g(lowest),
                format_g(highest),
                format_g2(diff),
                crate::date::format_rfc3339(min_ms),
                crate::date::format_rfc3339(max_ms),
            ),
            Detail::Overlaps(count) if count > 1 => format!("{text} ({count} occurrences) ({at})"),
            Detail::Overlaps(_) => format!("{text} ({at})"),
        }
    }
}

/// One method per annotation Prometheus knows.
impl Annotations {
    pub(crate) fn invalid_quantile(&mut self, q: f64, span: Span) {
        self.warn(
            format!("quantile value should be between 0 and 1, got {}", format_g(q)),
            span,
        );
    }

    pub(crate) fn invalid_ratio(&mut self, ratio: f64, capped: f64, span: Span) {
        let (ratio, capped) = (format_g(ratio), format_g(capped));
        self.warn(
            format!("ratio value should be between -1 and 1, got {ratio}, capping to {capped}"),
            span,
        );
    }

    pub(crate) fn bad_bucket_label(&mut self, metric: &str, label: &str, span: Span) {
        let text = format!("bucket label \"le\" is missing or has a malformed value of {label:?}");
        self.warn(for_metric(&text, metric), span);
    }

    pub(crate) fn mixed_floats_histograms(&mut self, metric: &str, span: Span) {
        self.warn(format!("{MIX} metric name {metric:?}"), span);
    }

    pub(crate) fn mixed_floats_histograms_in_aggregation(&mut self, span: Span) {
        self.warn(format!("{MIX} aggregation"), span);
    }

    pub(crate) fn mixed_classic_native(&mut self, metric: &str, span: Span) {
        self.warn(
            for_metric("vector contains a mix of classic and native histograms", metric),
            span,
        );
    }

    pub(crate) fn histogram_not_counter(&mut self, metric: &str, span: Span) {
        self.warn(
            format!("this native histogram metric is not a counter: {metric:?}"),
            span,
        );
    }

    pub(crate) fn histogram_not_gauge(&mut self, metric: &str, span: Span) {
        self.warn(
            format!("this native histogram metric is not a gauge: {metric:?}"),
            span,
        );
    }

    pub(crate) fn mixed_exponential_custom(&mut self, metric: &str, span: Span) {
        let text =
            "vector contains a mix of histograms with exponential and custom buckets schemas for metric name";
        self.warn(format!("{text} {metric:?}"), span);
    }

    pub(crate) fn incompatible_bucket_layout(&mut self, operator: &str, span: Span) {
        self.warn(
            format!("incompatible bucket layout encountered for binary operator {operator}"),
            span,
        );
    }

    pub(crate) fn sort_in_range_query(&mut self, span: Span) {
        self.warn(
            "sort is ineffective for range queries since results are always ordered by labels",
            span,
        );
    }

    pub(crate) fn counter_reset_collision(&mut self, operation: HistogramOperation, span: Span) {
        self.warn(
            format!(
                "conflicting counter resets during histogram {}",
                operation.as_str()
            ),
            span,
        );
    }

    pub(crate) fn start_time_overlap(&mut self, metric: &str, span: Span) {
        let text = "sample has start time that overlaps with previous sample timestamp";
        self.add(
            Level::Warning,
            format!("{text} for metric {metric:?}"),
            span,
            Detail::Overlaps(1),
        );
    }

    pub(crate) fn possible_non_counter(&mut self, metric: &str, span: Span) {
        let text = "metric might not be a counter, name does not end in _total/_sum/_count/_bucket:";
        self.info(format!("{text} {metric:?}"), span);
    }

    pub(crate) fn possible_non_counter_type(&mut self, metric: &str, kind: &str, span: Span) {
        let text = "metric might not be a counter, __type__ label is not set to \"counter\" or \"histogram\"";
        self.info(format!("{text}, got {kind:?}: {metric:?}"), span);
    }

    pub(crate) fn forced_monotonicity(
        &mut self,
        metric: &str,
        span: Span,
        at_ms: i64,
        (lowest, highest, diff): (f64, f64, f64),
    ) {
        let text = "input to histogram_quantile needed to be fixed for monotonicity (see \
                    https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)";
        let detail = Detail::Monotonicity {
            min_ms: at_ms,
            max_ms: at_ms,
            lowest,
            highest,
            diff,
            samples: 1,
        };
        self.add(Level::Info, for_metric(text, metric), span, detail);
    }

    pub(crate) fn incompatible_types(&mut self, left: &str, operator: &str, right: &str, span: Span) {
        let text = "incompatible sample types encountered for binary operator";
        self.info(format!("{text} {operator:?}: {left} {operator} {right}"), span);
    }

    pub(crate) fn histogram_ignored_in_aggregation(&mut self, aggregation: &str, span: Span) {
        self.info(format!("ignored histogram in {aggregation} aggregation"), span);
    }

    pub(crate) fn histogram_ignored_in_mixed_range(&mut self, metric: &str, span: Span) {
        let text = "ignored histograms in a range containing both floats and histograms for metric name";
        self.info(format!("{text} {metric:?}"), span);
    }

    /// `asked_for`: whether the query may have had samples and wanted summaries.
    pub(crate) fn downsampled_samples(&mut self, function: &str, metric: &str, asked_for: bool, span: Span) {
        let text = match asked_for {
            false => {
                "samples are no longer kept, only their summaries: computed from the first and the last of each"
            }
            true => {
                "summaries were read, as the query asks for them or samples are no longer kept: computed from the first and the last of each"
            }
        };
        self.info(format!("{text}: {function} of {metric:?}"), span);
    }

    pub(crate) fn downsampled_histograms(&mut self, function: &str, metric: &str, span: Span) {
        let text = "of native histograms that an earlier version downsampled, or whose sum has too many buckets, no sums are kept: \
                    no value";
        self.info(format!("{text}: {function} of {metric:?}"), span);
    }

    pub(crate) fn quantile_nan_result(&mut self, metric: &str, span: Span) {
        let text = "input to histogram_quantile has NaN observations, result is NaN";
        self.info(for_metric(text, metric), span);
    }

    pub(crate) fn quantile_nan_skew(&mut self, metric: &str, span: Span) {
        let text = "input to histogram_quantile has NaN observations, result is skewed higher";
        self.info(for_metric(text, metric), span);
    }

    pub(crate) fn fraction_nans(&mut self, metric: &str, span: Span) {
        let text = "input to histogram_fraction has NaN observations, which are excluded from all fractions";
        self.info(for_metric(text, metric), span);
    }

    pub(crate) fn mismatched_custom_buckets(&mut self, operation: HistogramOperation, span: Span) {
        self.info(
            format!(
                "mismatched custom buckets were reconciled during {}",
                operation.as_str()
            ),
            span,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_count_once_at_the_latest_position() {
        let mut a = Annotations::default();
        a.invalid_quantile(2.0, Span::new(0, 1));
        a.invalid_quantile(2.0, Span::new(4, 5));
        let texts = a.render("quantile");
        assert_eq!(
            texts.warnings,
            ["PromQL warning: quantile value should be between 0 and 1, got 2 (1:5)"]
        );
        assert!(texts.infos.is_empty());
    }

    #[test]
    fn which_annotations_are_kept_depends_on_no_order_or_pieces() {
        let metrics: Vec<String> = (0..3 * KEPT_MAX)
            .map(|i| format!("m{}", i * 7_919 % 100_003))
            .collect();
        let note = |a: &mut Annotations, metric: &String| {
            a.possible_non_counter(metric, Span::new(0, 1));
            a.mixed_floats_histograms(metric, Span::new(0, 1));
        };
        let mut whole = Annotations::default();
        metrics.iter().for_each(|m| note(&mut whole, m));
        let mut pieces = Annotations::default();
        for chunk in metrics.rchunks(KEPT_MAX + 77) {
            let mut piece = Annotations::default();
            chunk.iter().for_each(|m| note(&mut piece, m));
            pieces.merge(piece);
        }
        let texts = whole.render("m");
        assert_eq!(texts, pieces.render("m"));
        assert_eq!((texts.warnings.len(), texts.infos.len()), (KEPT_MAX + 1, 0));
    }

    #[test]
    fn i12_long_names_are_cut() {
        let mut a = Annotations::default();
        a.mixed_floats_histograms(&"é".repeat(1 << 20), Span::new(0, 1));
        assert!(a.render("m").warnings[0].len() < TEXT_BYTES_MAX + 20);
    }

    #[test]
    fn repairs_of_classic_histograms_add_up() {
        let mut a = Annotations::default();
        a.forced_monotonicity("m", Span::new(2, 3), 1_000, (0.2, 5.0, 1.0));
        a.forced_monotonicity("m", Span::new(2, 3), 61_000, (0.1, 2.0, 12.5));
        let infos = a.render("a b").infos;
        assert!(
            infos[0].ends_with(
                "for metric name \"m\", from buckets 0.1 to 5, with a max diff of 12, over 2 samples \
                 from 1970-01-01T00:00:01Z to 1970-01-01T00:01:01Z (1:3)"
            ),
            "{}",
            infos[0]
        );
    }
}
