//! Answers: Prometheus' envelope around data, large results in pieces as the client takes them.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};

use super::admission::Place;
use super::json::{write_array, write_string};

/// Bytes written before they are handed to the connection.
const PIECE_BYTES: usize = 64 << 10;

/// What a truncated answer's warning says.
pub(crate) const TRUNCATED: &str = "results truncated due to limit";

/// What an answer occupies while it is sent, so that clients that read slowly cannot pile up results.
pub(crate) type Held = Option<Place>;

/// An answer whose data is `prefix`, an array of `items`, and `suffix`. Items are written when the client is ready for
/// them, so that an answer never exists in memory as a whole; `held` lives until the last one is.
pub(crate) fn streamed<T: Send + 'static>(
    prefix: &[u8],
    items: Vec<T>,
    write: impl FnMut(&mut Vec<u8>, T) + Send + 'static,
    suffix: Vec<u8>,
    notes: &Notes,
    held: Held,
) -> Response {
    let mut first = br#"{"status":"success","data":"#.to_vec();
    first.extend_from_slice(prefix);
    first.push(b'[');
    let mut last = vec![b']'];
    last.extend(suffix);
    notes.write(&mut last);
    last.push(b'}');
    let mut pieces = Pieces {
        first,
        items: items.into_iter(),
        write,
        last,
        started: false,
        done: false,
        _held: held,
    };
    let head = pieces.next().unwrap_or_default();
    if pieces.done {
        return json(Body::from(head));
    }
    let rest = std::iter::once(head).chain(pieces);
    json(Body::from_stream(stream::iter(rest.map(Ok::<_, Infallible>))))
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
    write: W,
    last: Vec<u8>,
    started: bool,
    done: bool,
    _held: Held,
}

impl<T, W: FnMut(&mut Vec<u8>, T)> Iterator for Pieces<T, W> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = std::mem::take(&mut self.first);
        while piece.len() < PIECE_BYTES {
            let Some(item) = self.items.next() else {
                self.done = true;
                piece.append(&mut self.last);
                break;
            };
            if std::mem::replace(&mut self.started, true) {
                piece.push(b',');
            }
            (self.write)(&mut piece, item);
        }
        Some(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::http::json::write_integer;

    async fn text(response: Response) -> String {
        let bytes = to_bytes(response.into_body(), 1 << 30).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn large_and_small_answers_have_one_form() {
        for count in [0, 1, 2, 100_000] {
            let numbers: Vec<i64> = (0..count).collect();
            let response = streamed(
                b"",
                numbers.clone(),
                write_integer,
                Vec::new(),
                &Notes::default(),
                None,
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
}
