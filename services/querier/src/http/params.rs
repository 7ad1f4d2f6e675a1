//! Parameters of a request, from its query string and its form body.

use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method, Request, header};
use koios_model::{MatchOp, Matchers};
use koios_promql::parse_metric_selector;
use koios_server::ErrorType;

use super::error::ApiError;
use super::time::{MAX_TIME_MS, MIN_TIME_MS, parse_millis, parse_time};

/// Largest form body: the longest query, percent-encoded, and room.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Most fields of a form.
const FIELDS_MAX: usize = 50_000;
/// Most matchers of all `match[]` selectors together.
const MATCHERS_MAX: usize = 1000;
/// Most regular expressions among them: each may take hundreds of kilobytes and a millisecond.
const REGEXES_MAX: usize = 200;
/// Most regular expressions that take megabytes.
const LARGE_REGEXES_MAX: usize = 8;

/// The parameters of a request: those of its form, then those of its query string, each in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
    /// How many of them the form has.
    of_form: usize,
}

impl Params {
    /// Reads the query string and, for POST and PUT, the form body.
    pub(crate) async fn read(request: Request<Body>) -> Result<(HeaderMap, Self), ApiError> {
        let (head, body) = request.into_parts();
        let mut params = Self::default();
        if matches!(head.method, Method::POST | Method::PUT) && has_form(&head.headers)? {
            let bytes = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
                let text = format!("request body larger than {BODY_BYTES_MAX} bytes, or broken off");
                ApiError::new(ErrorType::TooLarge, text)
            })?;
            params.add(&bytes)?;
        }
        params.of_form = params.pairs.len();
        params.add(head.uri.query().unwrap_or("").as_bytes())?;
        Ok((head.headers, params))
    }

    fn add(&mut self, encoded: &[u8]) -> Result<(), ApiError> {
        for field in encoded.split(|b| *b == b'&').filter(|f| !f.is_empty()) {
            if self.pairs.len() >= FIELDS_MAX {
                return Err(ApiError::bad_data(format!(
                    "too many form fields (limit: {FIELDS_MAX})"
                )));
            }
            let at = field.iter().position(|b| *b == b'=');
            let (name, value) = match at {
                Some(at) => (field.get(..at), field.get(at + 1..)),
                None => (Some(field), None),
            };
            self.pairs
                .push((decode(name.unwrap_or(b""))?, decode(value.unwrap_or(b""))?));
        }
        Ok(())
    }

    /// The values of a parameter that may come several times, in the form as in the query string.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        values_in(&self.pairs, name)
    }

    /// The value of a parameter that may come once; empty counts as absent. That of the form stands for that of the query
    /// string.
    ///
    /// **Source:** Go `net/http` `Request.FormValue`, which takes the first of several.
    pub(crate) fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, ApiError> {
        let (form, query) = self.pairs.split_at(self.of_form.min(self.pairs.len()));
        let (mut of_form, mut of_query) = (values_in(form, name), values_in(query, name));
        let (of_form, of_query) = (
            [of_form.next(), of_form.next()],
            [of_query.next(), of_query.next()],
        );
        if of_form[1].or(of_query[1]).is_some() {
            return Err(ApiError::bad_data(format!("parameter {name:?} given twice")));
        }
        Ok(of_form[0].or(of_query[0]).filter(|v| !v.is_empty()))
    }

    /// A required time in milliseconds.
    pub(crate) fn time(&self, name: &str) -> Result<i64, ApiError> {
        parse_time(self.one(name)?.unwrap_or("")).map_err(|e| ApiError::invalid(name, e))
    }

    /// A time in milliseconds, or `default`.
    pub(crate) fn time_or(&self, name: &str, default: i64) -> Result<i64, ApiError> {
        match self.one(name)? {
            Some(text) => parse_time(text).map_err(|e| ApiError::invalid(name, e)),
            None => Ok(default),
        }
    }

    /// A duration in milliseconds.
    pub(crate) fn millis(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let text = self.one(name)?;
        text.map(|t| parse_millis(t).map_err(|e| ApiError::invalid(name, e)))
            .transpose()
    }

    /// `start` and `end`, by default everything.
    pub(crate) fn range(&self) -> Result<koios_model::TimeRange, ApiError> {
        let start = self.time_or("start", MIN_TIME_MS)?;
        let end = self.time_or("end", MAX_TIME_MS)?;
        if end < start {
            return Err(ApiError::invalid(
                "end",
                "end timestamp must not be before start time",
            ));
        }
        Ok(koios_model::TimeRange::new(start, end))
    }

    /// A count that must not be negative; 0 when absent.
    pub(crate) fn count(&self, name: &str) -> Result<usize, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(0) };
        let count: i64 = text
            .parse()
            .map_err(|_| ApiError::invalid(name, format!("cannot parse {text:?} to a valid integer")))?;
        usize::try_from(count).map_err(|_| ApiError::invalid(name, format!("{name} must be non-negative")))
    }

    /// Most of something; none when it is absent or negative.
    pub(crate) fn most(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.one(name)? else {
            return Ok(None);
        };
        let most = text.parse::<i64>();
        let most = most.map_err(|_| ApiError::bad_data(format!("{name} must be a number")))?;
        Ok(usize::try_from(most).ok())
    }

    /// Whether there is any `match[]`.
    pub(crate) fn has_selectors(&self) -> bool {
        self.all("match[]").next().is_some()
    }

    /// The `match[]` selectors, each checked to match something specific. Takes CPU.
    pub(crate) fn selectors(&self) -> Result<Vec<Matchers>, ApiError> {
        let mut selectors = Vec::new();
        let (mut matchers, mut regexes, mut large) = (0, 0, 0);
        for text in self.all("match[]") {
            let selector = parse_metric_selector(text).map_err(|e| ApiError::invalid("match[]", e))?;
            matchers += selector.len();
            regexes += selector
                .iter()
                .filter(|m| matches!(m.op(), MatchOp::Regex | MatchOp::NotRegex))
                .count();
            large += selector.iter().filter(|m| m.is_large()).count();
            for (count, what, limit) in [
                (matchers, "matchers", MATCHERS_MAX),
                (regexes, "regular expression matchers", REGEXES_MAX),
                (large, "large regular expression matchers", LARGE_REGEXES_MAX),
            ] {
                if count > limit {
                    return Err(ApiError::bad_data(format!("too many {what} (limit: {limit})")));
                }
            }
            if selector.iter().all(|m| m.matches_empty()) {
                let text = "match[] must contain at least one non-empty matcher";
                return Err(ApiError::invalid("match[]", text));
            }
            selectors.push(Matchers(selector));
        }
        Ok(selectors)
    }
}

/// Whether there is a form in the body.
fn has_form(headers: &HeaderMap) -> Result<bool, ApiError> {
    const FORM: &str = "application/x-www-form-urlencoded";
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let kind = kind.and_then(|v| v.split(';').next()).unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("multipart/form-data") {
        let text = format!("unsupported content type {kind:?}, send parameters as {FORM}");
        return Err(ApiError::new(ErrorType::Unsupported, text));
    }
    Ok(kind.eq_ignore_ascii_case(FORM))
}

fn values_in<'a>(pairs: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    let of_name = pairs.iter().filter(move |(n, _)| n == name);
    of_name.map(|(_, v)| v.as_str())
}

fn decode(encoded: &[u8]) -> Result<String, ApiError> {
    let spaced: Vec<u8> = encoded
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    let bytes: Vec<u8> = percent_encoding::percent_decode(&spaced).collect();
    String::from_utf8(bytes).map_err(|_| ApiError::bad_data("a parameter is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        let mut params = Params::default();
        params.add(text.as_bytes()).unwrap();
        params
    }

    #[test]
    fn decodes_fields() {
        let p = params("query=a%2Bb+c&&x&match[]=1&match%5B%5D=2&empty=");
        assert_eq!(p.one("query").unwrap(), Some("a+b c"));
        assert_eq!(p.all("match[]").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(p.one("x").unwrap(), None);
        assert_eq!(p.one("empty").unwrap(), None);
        assert_eq!(
            p.one("match[]").unwrap_err().message,
            r#"parameter "match[]" given twice"#
        );
    }

    async fn read(query: &str, kind: &str, form: &str) -> Result<Params, ApiError> {
        let request = Request::post(format!("/x?{query}")).header("content-type", kind);
        let request = request.body(Body::from(form.to_owned())).unwrap();
        Params::read(request).await.map(|(_, params)| params)
    }

    const FORM: &str = "application/x-www-form-urlencoded";

    #[tokio::test]
    async fn a_form_stands_for_the_query_string() {
        let p = read(
            "query=a&time=1&match[]=x",
            FORM,
            "query=b&end=&match[]=y&match[]=z",
        )
        .await
        .unwrap();
        assert_eq!(p.one("query").unwrap(), Some("b"));
        assert_eq!(p.one("time").unwrap(), Some("1"));
        assert_eq!(p.all("match[]").collect::<Vec<_>>(), ["y", "z", "x"]);
        let p = read("query=a", FORM, "query=").await.unwrap();
        assert_eq!(p.one("query").unwrap(), None);
        for (query, form) in [("q=1&q=2", ""), ("", "q=1&q=2"), ("q=1&q=2", "q=1")] {
            let e = read(query, FORM, form).await.unwrap().one("q").unwrap_err();
            assert_eq!(e.message, r#"parameter "q" given twice"#, "{query} {form}");
        }
    }

    #[tokio::test]
    async fn forms_are_known_by_their_type_however_it_is_written() {
        for kind in [
            FORM,
            "Application/X-WWW-Form-Urlencoded",
            " application/x-www-form-urlencoded ; charset=UTF-8",
        ] {
            let p = read("", kind, "q=1").await.unwrap();
            assert_eq!(p.one("q").unwrap(), Some("1"), "{kind}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded2", ""] {
            let p = read("", kind, "q=1").await.unwrap();
            assert_eq!(p.one("q").unwrap(), None, "{kind}");
        }
        let e = read("q=1", "Multipart/form-data; boundary=x", "")
            .await
            .unwrap_err();
        assert_eq!(e.kind, ErrorType::Unsupported);
        assert!(
            e.message.ends_with(&format!("send parameters as {FORM}")),
            "{}",
            e.message
        );
    }

    #[test]
    fn i12_fields_and_matchers_are_bounded() {
        let mut p = Params::default();
        let e = p.add("a=1&".repeat(FIELDS_MAX + 1).as_bytes()).unwrap_err();
        assert!(e.message.starts_with("too many form fields"), "{}", e.message);
        let many = params(&"match[]=up&".repeat(10_000));
        assert!(
            many.selectors()
                .unwrap_err()
                .message
                .starts_with("too many matchers")
        );
        assert!(Params::default().add(b"a=%ff").is_err());
    }
}
