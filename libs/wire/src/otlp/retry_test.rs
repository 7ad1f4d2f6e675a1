//! A request that comes again, because its answer was an error or was lost, comes out the same again.

use proptest::prelude::*;

use super::*;

/// Kinds of metrics, by the number of their field.
const KINDS: [u32; 5] = [5, 7, 9, 10, 11];

/// A data point that is right, mostly.
#[derive(Clone, Debug)]
struct Sent {
    start: u64,
    length: u64,
    counts: Vec<u64>,
    bound: u8,
    scale: i64,
    attribute: u8,
    stale: bool,
    wrong: bool,
}

impl Sent {
    fn message(&self, kind: u32) -> Message {
        let end = (self.start + self.length) * SECOND / 2;
        let point = message().fixed(2, self.start * SECOND / 2).fixed(3, end);
        let count = self.counts.iter().sum::<u64>() + u64::from(self.wrong);
        let name = if self.attribute.is_multiple_of(2) {
            "a.b"
        } else {
            "a_b"
        };
        let attributes = [(name, if self.attribute < 2 { "x" } else { "y" })];
        let exemplar = message().double(3, 1.0).bytes(5, [self.bound + 1]);
        let (attributes_at, flags_at) = match kind {
            9 => (9, 10),
            10 => (1, 10),
            _ => (7, 8),
        };
        let point = match kind {
            9 => point
                .fixed(4, count)
                .double(5, 0.5)
                .fixed_list(6, &self.counts)
                .fixed_list(7, &self.bounds())
                .message(8, &exemplar),
            10 => point
                .fixed(4, count)
                .double(5, 0.5)
                .signed(6, self.scale)
                .message(
                    8,
                    &message().signed(1, i64::from(self.bound)).packed(2, &self.counts),
                )
                .message(11, &exemplar),
            11 => point.fixed(4, count).double(5, 0.5),
            _ if self.wrong => point.double(4, f64::NAN),
            _ => point.fixed(6, count).message(5, &exemplar),
        };
        let point = point.attributes(attributes_at, &attributes);
        match self.stale {
            true => point.number(flags_at, 1),
            false => point,
        }
    }

    fn bounds(&self) -> Vec<u64> {
        let bound = |i: usize| (i as f64 + f64::from(self.bound)).to_bits();
        (1..self.counts.len()).map(bound).collect()
    }
}

fn sent(from: u64) -> impl Strategy<Value = Sent> {
    let point = (
        (from..from + 12, 0u64..6),
        proptest::collection::vec(0u64..5, 1..4),
        0u8..2,
        -5i64..10,
        0u8..4,
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.05),
    );
    point.prop_map(
        |((start, length), counts, bound, scale, attribute, stale, wrong)| Sent {
            start,
            length,
            counts,
            bound,
            scale,
            attribute,
            stale,
            wrong,
        },
    )
}

fn metric_of(kind: u32, name: bool, temporality: u64, points: &[Sent]) -> Message {
    let points: Vec<_> = points.iter().map(|point| point.message(kind)).collect();
    let data = message().messages(1, &points);
    let data = match kind {
        5 | 11 => data,
        7 => data.number(2, temporality).number(3, points.len() as u64 % 2),
        _ => data.number(2, temporality),
    };
    metric(if name { "m.n" } else { "m_n" }, "", kind, &data)
}

/// Few names, scopes, hosts and times, so that many of them meet.
fn metrics() -> impl Strategy<Value = Vec<u8>> {
    metrics_from(0)
}

/// The same, none of it from before a time.
fn metrics_from(from: u64) -> impl Strategy<Value = Vec<u8>> {
    let metric = (
        prop::sample::select(&KINDS[..]),
        any::<bool>(),
        prop::sample::select(&[0u64, 1, 1, 1, 1, 2][..]),
        proptest::collection::vec(sent(from), 0..6),
    );
    let metric =
        metric.prop_map(|(kind, name, temporality, points)| metric_of(kind, name, temporality, &points));
    let scope = (0u8..3, proptest::collection::vec(metric, 0..4));
    let resource = (0u8..2, proptest::collection::vec(scope, 0..3));
    proptest::collection::vec(resource, 0..3).prop_map(|resources| {
        resources
            .iter()
            .fold(message(), |m, (host, scopes)| {
                let host = host.to_string();
                let resource = message().attributes(1, &[("service.name", "s"), ("host.name", &host)]);
                let scopes = scopes.iter().map(|(scope, metrics)| {
                    let scope = message().bytes(1, format!("scope-{scope}"));
                    message().message(1, &scope).messages(2, metrics)
                });
                let of_resource =
                    scopes.fold(message().message(1, &resource), |m, scope| m.message(2, &scope));
                m.message(1, &of_resource)
            })
            .0
    })
}

proptest! {
    #[test]
    fn i2_a_request_comes_out_the_same_again(
        before in metrics(), request in metrics(), promotes in any::<bool>(), to_nhcb in any::<bool>()
    ) {
        let settings = Settings {
            promote_scope_metadata: promotes,
            convert_histograms_to_nhcb: to_nhcb,
            ..Settings::default()
        };
        let deltas = Deltas::default();
        let send = |bytes: &[u8]| {
            let tenant = deltas.of(&TenantId::anonymous(), std::time::Duration::ZERO);
            let came_out = add_up_request(&tenant, &settings, bytes);
            tenant.into_changes().sent();
            came_out
        };
        send(&before);
        let first = send(&request);
        prop_assert_eq!(&send(&request), &first);
        prop_assert_eq!(&send(&request), &first);
    }

    #[test]
    fn i2_a_request_that_was_refused_leaves_nothing(
        before in metrics(),
        refused in metrics_from(20),
        after in metrics_from(20),
        promotes in any::<bool>(),
        to_nhcb in any::<bool>(),
    ) {
        let settings = Settings {
            promote_scope_metadata: promotes,
            convert_histograms_to_nhcb: to_nhcb,
            ..Settings::default()
        };
        let (deltas, others) = (Deltas::default(), Deltas::default());
        let send = |deltas: &Deltas, bytes: &[u8], is_sent: bool| {
            let tenant = deltas.of(&TenantId::anonymous(), std::time::Duration::ZERO);
            let came_out = add_up_request(&tenant, &settings, bytes);
            if is_sent {
                tenant.into_changes().sent();
            }
            came_out
        };
        send(&deltas, &before, true);
        send(&others, &before, true);
        let first = send(&deltas, &refused, false);
        prop_assert_eq!(&send(&deltas, &refused, false), &first);
        prop_assert_eq!(send(&deltas, &after, true), send(&others, &after, true));
        prop_assert_eq!(send(&deltas, &after, true), send(&others, &after, true));
        prop_assert_eq!(deltas.held_bytes(), others.held_bytes());
    }
}
