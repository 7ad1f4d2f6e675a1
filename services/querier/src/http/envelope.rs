//! Answers: Prometheus' envelope around data, large results in pieces as the client takes them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use koios_runtime::{CancellationToken, ClockHandle, TaskGroup};
use koios_wire::{ReaderPace, watched};

use super::admission::Place;
use super::json::{write_array, write_string};
use crate::cluster::Charge;

/// Bytes that are handed to the connection at once, but for the last ones: what a client takes is counted in pieces, so
/// they must be of one size.
const PIECE_BYTES: usize = 64 << 10;

/// What a truncated answer's warning says.
pub(crate) const TRUNCATED: &str = "results truncated due to limit";

/// How slowly a client may read: it takes the next piece within half a minute, and 32 KiB a second on average.
const PACE: ReaderPace = ReaderPace {
    patience: Duration::from_secs(30),
    per_item: Duration::from_secs(2),
};

/// What an answer occupies while it is sent, so that clients that read slowly cannot pile up results.
#[derive(Debug)]
pub(crate) struct Held {
    _place: Place,
    /// The memory of what is sent, where it is still charged.
    _charge: Option<Charge>,
}

impl Held {
    pub(crate) fn new(place: Place, charge: Option<Charge>) -> Self {
        Self {
            _place: place,
            _charge: charge,
        }
    }
}

/// Watches that clients read their answers, and frees what those hold that do not (I6).
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    clock: ClockHandle,
    tasks: TaskGroup,
}

impl Clients {
    pub(crate) fn new(clock: &ClockHandle) -> Self {
        Self {
            clock: Arc::clone(clock),
            tasks: TaskGroup::new(CancellationToken::new()),
        }
    }

    /// A body of pieces, broken off when its client is too slow.
    fn body(&self, pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
        let pieces = stream::iter(pieces.map(Ok));
        let too_slow = std::io::Error::new(std::io::ErrorKind::TimedOut, "the client reads too slowly");
        let clock = Arc::clone(&self.clock);
        Body::from_stream(watched(pieces, PACE, too_slow, clock, &self.tasks))
    }
}

/// Where an answer goes, and what it occupies until it is there.
#[derive(Debug)]
pub(crate) struct Sending<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) held: Held,
}

/// What stands around the items of an answer's data.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) before: Cow<'static, [u8]>,
    pub(crate) after: Cow<'static, [u8]>,
}

/// Data that is an array of items.
pub(crate) const ARRAY: Frame = Frame {
    before: Cow::Borrowed(b"["),
    after: Cow::Borrowed(b"]"),
};

/// Data that is an object whose members are the items.
pub(crate) const OBJECT: Frame = Frame {
    before: Cow::Borrowed(b"{"),
    after: Cow::Borrowed(b"}"),
};

/// An answer whose data is `items`, with commas between them, in a frame. Items are written when the client is ready for
/// them, so that an answer never exists in memory as a whole; what is held lives until the last one is, or until the
/// client was too slow.
pub(crate) fn streamed<T: Send + 'static>(
    frame: &Frame,
    items: Vec<T>,
    mut write: impl FnMut(&mut Vec<u8>, T) + Send + 'static,
    notes: &Notes,
    sending: Sending<'_>,
) -> Response {
    let whole = move |out: &mut Vec<u8>, item| {
        write(out, item);
        None
    };
    streamed_in_parts(frame, items, whole, notes, sending)
}

/// The same of items that may be long: `write` writes until there is enough for a piece ([`is_enough`]) and gives back
/// what is left of the item, so that the text of no item exists in memory as a whole either.
pub(crate) fn streamed_in_parts<T: Send + 'static>(
    frame: &Frame,
    items: Vec<T>,
    write: impl FnMut(&mut Vec<u8>, T) -> Option<T> + Send + 'static,
    notes: &Notes,
    sending: Sending<'_>,
) -> Response {
    let mut first = br#"{"status":"success","data":"#.to_vec();
    first.extend_from_slice(&frame.before);
    let mut last = frame.after.to_vec();
    notes.write(&mut last);
    last.push(b'}');
    let mut pieces = Pieces {
        first,
        items: items.into_iter(),
        current: None,
        write,
        last,
        started: false,
        done: false,
        rest: Bytes::new(),
        _held: sending.held,
    };
    let head = pieces.next().unwrap_or_default();
    if pieces.done && pieces.rest.is_empty() {
        return json(Body::from(head));
    }
    let rest = std::iter::once(head).chain(pieces);
    json(sending.clients.body(rest))
}

/// Whether there is enough text for a piece.
pub(crate) fn is_enough(written: &[u8]) -> bool {
    written.len() >= PIECE_BYTES
}

/// An answer whose data is small.
pub(crate) fn whole(write: impl FnOnce(&mut Vec<u8>), notes: &Notes) -> Response {
    let mut body = br#"{"status":"success","data":"#.to_vec();
    write(&mut body);
    notes.write(&mut body);
    body.push(b'}');
    json(Body::from(body))
}

fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What an answer says beside its data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(crate) warnings: Vec<String>,
    pub(crate) infos: Vec<String>,
}

impl Notes {
    /// With a warning that there is more, if there is.
    pub(crate) fn truncated(truncated: bool) -> Self {
        let mut notes = Self::default();
        notes.warnings.extend(truncated.then(|| TRUNCATED.to_owned()));
        notes
    }

    fn write(&self, out: &mut Vec<u8>) {
        for (name, texts) in [("warnings", &self.warnings), ("infos", &self.infos)] {
            if !texts.is_empty() {
                out.extend_from_slice(format!(",\"{name}\":").as_bytes());
                write_array(out, texts, |out, text| write_string(out, text));
            }
        }
    }
}

struct Pieces<T, W> {
    first: Vec<u8>,
    items: std::vec::IntoIter<T>,
    /// What is left of the item that was begun.
    current: Option<T>,
    write: W,
    last: Vec<u8>,
    started: bool,
    /// Whether all is written.
    done: bool,
    /// Written, but too much for the last piece.
    rest: Bytes,
    _held: Held,
}

impl<T, W: FnMut(&mut Vec<u8>, T) -> Option<T>> Iterator for Pieces<T, W> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.rest.len() < PIECE_BYTES && !self.done {
            self.write_more();
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    }
}

impl<T, W: FnMut(&mut Vec<u8>, T) -> Option<T>> Pieces<T, W> {
    /// Writes until there is enough for a piece; a single item may be more.
    fn write_more(&mut self) {
        let mut written = std::mem::take(&mut self.first);
        written.extend_from_slice(&self.rest);
        while !is_enough(&written) {
            let Some(item) = self.current.take().or_else(|| self.begin(&mut written)) else {
                self.done = true;
                written.append(&mut self.last);
                break;
            };
            self.current = (self.write)(&mut written, item);
        }
        self.rest = written.into();
    }

    /// The next item, and the comma before it.
    fn begin(&mut self, written: &mut Vec<u8>) -> Option<T> {
        let item = self.items.next()?;
        if std::mem::replace(&mut self.started, true) {
            written.push(b',');
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures::StreamExt;
    use koios_model::TenantId;
    use koios_runtime::{RealClock, TokioClock};

    use super::*;
    use crate::http::admission::Admission;
    use crate::http::json::write_integer;

    async fn text(response: Response) -> String {
        let bytes = to_bytes(response.into_body(), 1 << 30).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn large_and_small_answers_have_one_form() {
        let admission = Admission::new(1, 1);
        let clock: ClockHandle = Arc::new(RealClock::new());
        let clients = Clients::new(&clock);
        for count in [0, 1, 2, 100_000] {
            let place = admission.enter(&TenantId::anonymous(), 1).await.unwrap();
            let held = Held::new(place, None);
            let numbers: Vec<i64> = (0..count).collect();
            let response = streamed(
                &ARRAY,
                numbers.clone(),
                write_integer,
                &Notes::default(),
                Sending {
                    clients: &clients,
                    held,
                },
            );
            let value: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
            assert_eq!(value, serde_json::json!({"status": "success", "data": numbers}));
        }
    }

    #[tokio::test]
    async fn notes_follow_the_data() {
        let response = whole(|out| write_integer(out, 7), &Notes::truncated(true));
        let expected = r#"{"status":"success","data":7,"warnings":["results truncated due to limit"]}"#;
        assert_eq!(text(response).await, expected);
    }

    /// What a client gets of large items, each far more than a piece, that takes `rate` bytes a second.
    async fn taken_at(rate: usize) -> Result<Vec<u8>, axum::Error> {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let clients = Clients::new(&clock);
        let place = Admission::new(1, 1)
            .enter(&TenantId::anonymous(), 1)
            .await
            .unwrap();
        let sending = Sending {
            clients: &clients,
            held: Held::new(place, None),
        };
        let write = |out: &mut Vec<u8>, size: usize| out.resize(out.len() + size, b'1');
        let response = streamed(&ARRAY, vec![300_000; 100], write, &Notes::default(), sending);
        let mut taken = Vec::new();
        let mut pieces = response.into_body().into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            assert!(piece.len() <= PIECE_BYTES, "{} bytes at once", piece.len());
            clock
                .sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64))
                .await;
            taken.extend_from_slice(&piece);
        }
        Ok(taken)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clients_pace_is_counted_in_bytes_however_large_a_series_is() {
        let mut expected = br#"{"status":"success","data":["#.to_vec();
        expected.extend(vec!["1".repeat(300_000); 100].join(",").into_bytes());
        expected.extend_from_slice(b"]}");
        for rate in [33 << 10, 125_000] {
            assert!(taken_at(rate).await.unwrap() == expected, "{rate} bytes a second");
        }
        assert!(taken_at(24 << 10).await.is_err(), "slower than 32 KiB a second");
    }
}
