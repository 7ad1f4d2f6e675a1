//! Native histograms, in the float form that queries work on.

/// What is known about a counter reset between a histogram and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ResetHint {
    /// Nothing is known: compare.
    #[default]
    Unknown,
    /// A reset happened.
    Reset,
    /// No reset happened.
    NotReset,
    /// A gauge histogram: resets have no meaning.
    Gauge,
}

/// A run of consecutive buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Span {
    /// Gap to the end of the previous span; for the first span the index it starts at.
    pub offset: i32,
    /// How many buckets.
    pub length: u32,
}

/// A native histogram with float counts and absolute (not delta) bucket counts.
///
/// Schemas -4 to 8 are exponential; -53 has custom bounds in `custom_bounds` and only positive buckets.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Histogram {
    /// The reset hint.
    pub reset_hint: ResetHint,
    /// The resolution.
    pub schema: i32,
    /// Width of the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// All observations.
    pub count: f64,
    /// Sum of all observations.
    pub sum: f64,
    /// Spans of the positive buckets.
    pub positive_spans: Vec<Span>,
    /// Spans of the negative buckets.
    pub negative_spans: Vec<Span>,
    /// Counts of the positive buckets, as many as the spans' lengths add up to.
    pub positive_buckets: Vec<f64>,
    /// Counts of the negative buckets.
    pub negative_buckets: Vec<f64>,
    /// Upper bounds for schema -53, strictly ascending, `+Inf` left out.
    pub custom_bounds: Vec<f64>,
}
