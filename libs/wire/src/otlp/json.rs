//! OTLP in JSON, written as protobuf so that one decoder serves both.
//!
//! The text is read once, front to back, along a table of the messages; nothing of it is kept. **Source**: OTLP
//! specification, "JSON Protobuf Encoding"; protobuf's JSON mapping: names in lower camel case, enums by number or name,
//! numbers of 64 bits as numbers or strings, ids in hex, other bytes in base64, unknown names ignored, `null` for absent.

mod schema;

use std::fmt;

use base64::Engine as _;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::schema::{ANY_VALUE, Field, Kind, REQUEST};
use super::OtlpError;
use super::value::DEPTH_MAX;
use crate::protobuf_writer::Writer;

/// The most that the protobuf form takes: eight bytes of a number that has two in JSON.
const GROWTH_MAX: usize = 6;

/// Why text is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid OTLP JSON at line {line} column {column}: {reason}")]
pub struct JsonError {
    line: usize,
    column: usize,
    reason: String,
}

impl From<serde_json::Error> for JsonError {
    fn from(e: serde_json::Error) -> Self {
        let (line, column) = (e.line(), e.column());
        let text = e.to_string();
        // The position stands at the front already.
        let reason = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(reason, _)| reason);
        Self {
            line,
            column,
            reason: reason.chars().take(200).collect(),
        }
    }
}

/// Most bytes that [`to_protobuf`] makes of a text.
pub fn bytes_max(text: &[u8]) -> usize {
    text.len().saturating_mul(GROWTH_MAX)
}

/// Writes a request as protobuf, in at most about `limit` bytes.
///
/// # Errors
/// [`OtlpError::Json`] names the place and what was expected there; [`OtlpError::TooLarge`].
pub fn to_protobuf(text: &[u8], limit: usize) -> Result<Vec<u8>, OtlpError> {
    let mut writer = Writer {
        limit,
        ..Writer::default()
    };
    match write(text, &mut writer) {
        _ if writer.is_full() => Err(OtlpError::TooLarge { limit }),
        Ok(()) => Ok(writer.out),
        Err(error) => Err(JsonError::from(error).into()),
    }
}

fn write(text: &[u8], writer: &mut Writer) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    Message {
        fields: &REQUEST,
        writer,
        depth: 0,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()
}

/// A message's content.
struct Message<'w> {
    fields: &'static [Field],
    writer: &'w mut Writer,
    /// In how many attribute values it is.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(Name(self.fields))? {
            match field {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(field) => map.next_value_seed(Value {
                    field,
                    writer: &mut *self.writer,
                    in_list: false,
                    depth: self.depth,
                })?,
            }
            if self.writer.is_full() {
                return Err(de::Error::custom("too large"));
            }
        }
        Ok(())
    }
}

/// A field's name.
struct Name(&'static [Field]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|field| field.name == name))
    }
}

/// A field's value, or an item of a repeated field.
struct Value<'w> {
    field: &'static Field,
    writer: &'w mut Writer,
    in_list: bool,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.field.kind {
            Kind::Text => "a string",
            Kind::Hex => "a string of hex digits",
            Kind::Base64 => "a string in base64",
            Kind::Bool => "true or false",
            Kind::Double => "a number",
            Kind::Uint | Kind::Uint32 | Kind::Fixed => "a whole number from 0 on",
            Kind::Int | Kind::SignedFixed | Kind::Zigzag32 => "a whole number",
            Kind::Temporality => "an aggregation temporality",
            Kind::Message(_) => "an object",
        };
        let of = self.field.name;
        match self.field.repeated && !self.in_list {
            true => write!(f, "a list for {of:?}, each {kind}"),
            false => write!(f, "{kind} for {of:?}"),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        match self.in_list {
            true => Err(E::invalid_type(de::Unexpected::Unit, &self)),
            false => Ok(()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if self.in_list || !self.field.repeated {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        while !self.writer.is_full()
            && items
                .next_element_seed(Value {
                    field: self.field,
                    writer: &mut *self.writer,
                    in_list: true,
                    depth: self.depth,
                })?
                .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.one::<A::Error>(de::Unexpected::Map)?;
        let Kind::Message(fields) = self.field.kind else {
            return Err(de::Error::invalid_type(de::Unexpected::Map, &self));
        };
        let depth = self.depth + usize::from(std::ptr::eq(fields.as_ptr(), ANY_VALUE.as_ptr()));
        // One for the value of the attribute itself.
        if depth > DEPTH_MAX + 1 {
            return Err(de::Error::custom(OtlpError::TooDeep));
        }
        let start = self.writer.open(self.field.number);
        let writer = &mut *self.writer;
        Message {
            fields,
            writer,
            depth,
        }
        .visit_map(map)?;
        self.writer.close(start);
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<(), E> {
        let sent = de::Unexpected::Bool(v);
        self.one::<E>(sent)?;
        match self.field.kind {
            Kind::Bool => self.writer.number(self.field.number, u64::from(v)),
            _ => return Err(E::invalid_type(sent, &self)),
        }
        Ok(())
    }

    fn visit_u64<E: de::Error>(mut self, v: u64) -> Result<(), E> {
        let sent = de::Unexpected::Unsigned(v);
        self.one::<E>(sent)?;
        let kind = self.field.kind;
        match kind {
            Kind::Double => self.double(v as f64),
            _ if self.whole(i128::from(v)) => {}
            _ => return Err(E::invalid_type(sent, &self)),
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(mut self, v: i64) -> Result<(), E> {
        let sent = de::Unexpected::Signed(v);
        self.one::<E>(sent)?;
        let kind = self.field.kind;
        match kind {
            Kind::Double => self.double(v as f64),
            _ if self.whole(i128::from(v)) => {}
            _ => return Err(E::invalid_type(sent, &self)),
        }
        Ok(())
    }

    fn visit_f64<E: de::Error>(mut self, v: f64) -> Result<(), E> {
        let sent = de::Unexpected::Float(v);
        self.one::<E>(sent)?;
        let kind = self.field.kind;
        match kind {
            Kind::Double => self.double(v),
            // Whole numbers may be written with an exponent.
            _ if v.fract() == 0.0 && v.abs() < 2e19 && self.whole(v as i128) => {}
            _ => return Err(E::invalid_type(sent, &self)),
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        let sent = de::Unexpected::Str(text);
        self.one::<E>(sent)?;
        let number = self.field.number;
        match self.field.kind {
            Kind::Text => self.writer.bytes(number, text.as_bytes()),
            Kind::Hex => {
                let bytes = from_hex(text).ok_or_else(|| E::invalid_value(sent, &self))?;
                self.writer.bytes(number, &bytes);
            }
            Kind::Base64 => {
                let bytes = from_base64(text).ok_or_else(|| E::invalid_value(sent, &self))?;
                self.writer.bytes(number, &bytes);
            }
            Kind::Double => {
                let v = match text {
                    "NaN" => f64::NAN,
                    "Infinity" => f64::INFINITY,
                    "-Infinity" => f64::NEG_INFINITY,
                    _ => text
                        .parse()
                        .ok()
                        .filter(|v: &f64| v.is_finite())
                        .ok_or_else(|| E::invalid_value(sent, &self))?,
                };
                self.double(v);
            }
            Kind::Temporality => {
                let temporality = schema::temporality(text).ok_or_else(|| E::invalid_value(sent, &self))?;
                self.writer.number(number, temporality);
            }
            Kind::Bool | Kind::Message(_) => return Err(E::invalid_type(sent, &self)),
            _ => match text.parse() {
                Ok(n) if self.whole(n) => {}
                _ => return Err(E::invalid_value(sent, &self)),
            },
        }
        Ok(())
    }
}

impl Value<'_> {
    /// A repeated field holds a list, whatever its items.
    fn one<E: de::Error>(&self, sent: de::Unexpected<'_>) -> Result<(), E> {
        match self.field.repeated && !self.in_list {
            true => Err(E::invalid_type(sent, self)),
            false => Ok(()),
        }
    }

    fn double(&mut self, v: f64) {
        self.writer.fixed64(self.field.number, v.to_bits());
    }

    /// Writes a whole number, if the field can hold it; tells whether it can.
    fn whole(&mut self, n: i128) -> bool {
        self.field.kind.write_whole(self.field.number, n, self.writer)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).map(|d| d as u8);
    let digits: Option<Vec<u8>> = text.bytes().map(|b| digit(&b)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(
        digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0u8, |n, d| n << 4 | d))
            .collect(),
    )
}

/// Either alphabet, with or without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    let plain = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    STANDARD_NO_PAD.decode(plain).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::test_messages::{Message as Proto, attribute, list, request};
    use super::*;

    const LIMIT: usize = 1 << 20;

    /// Lengths are written in more bytes than they need: compares what is read.
    fn same(json: &str, proto: &[u8]) {
        let written = to_protobuf(json.as_bytes(), LIMIT).unwrap();
        assert_eq!(
            super::super::tests::read(&written),
            super::super::tests::read(proto)
        );
    }

    #[test]
    fn says_the_same_as_protobuf() {
        let json = r#"{
            "resourceMetrics": [{
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
                "unknown": {"a": [1, 2, {"b": null}]},
                "scopeMetrics": [{"metrics": [
                    {"name": "a", "unit": "s", "description": null, "sum": {
                        "aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE", "isMonotonic": true,
                        "dataPoints": [{
                            "timeUnixNano": "1000000", "asInt": "-5", "flags": 0,
                            "attributes": [{"key": "k", "value": {"arrayValue": {"values": [
                                {"intValue": 7}, {"doubleValue": "NaN"}, {"bytesValue": "/-8="}]}}}],
                            "exemplars": [{"asDouble": 1e3, "timeUnixNano": 2000000,
                                "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174"}]
                        }]}},
                    {"name": "h", "exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [{
                        "timeUnixNano": 1000000.0, "count": 3, "sum": "4.5", "scale": -1, "zeroCount": "0",
                        "positive": {"offset": -2, "bucketCounts": ["1", 2]}}]}}
                ]}]
            }]
        }"#;
        let trace = [
            0x5b, 0x8e, 0xff, 0xf7, 0x98, 3, 0x81, 3, 0xd2, 0x69, 0xb6, 0x33, 0x81, 0x3f, 0xc6, 0x0c,
        ];
        let span = [0xee, 0xe1, 0x9b, 0x7e, 0xc3, 0xc1, 0xb1, 0x74];
        let message = Proto::default;
        let exemplar = message()
            .double(3, 1000.0)
            .fixed(2, 2_000_000)
            .bytes(5, trace)
            .bytes(4, span);
        let values = list(&[
            message().number(3, 7),
            message().double(4, f64::NAN),
            message().bytes(7, [0xff, 0xef]),
        ]);
        let point = message()
            .fixed(3, 1_000_000)
            .fixed(6, -5i64 as u64)
            .message(7, &attribute("k", &values))
            .message(5, &exemplar);
        let sum = message().number(2, 2).number(3, 1).message(1, &point);
        let buckets = message().signed(1, -2).packed(2, &[1, 2]);
        let point = message()
            .fixed(3, 1_000_000)
            .fixed(4, 3)
            .double(5, 4.5)
            .signed(6, -1)
            .message(8, &buckets);
        let exponential = message().number(2, 2).message(1, &point);
        let metrics = [
            message().bytes(1, "a").bytes(3, "s").message(7, &sum),
            message().bytes(1, "h").message(10, &exponential),
        ];
        same(json, &request(&[("service.name", "shop")], &metrics));
    }

    #[rstest]
    #[case("", "at line 1 column 0: EOF")]
    #[case("[]", "at line 1 column 0: invalid type: sequence, expected an object")]
    #[case("{} x", "at line 1 column 4: trailing characters")]
    #[case(
        "{\n\"resourceMetrics\": 5}",
        "at line 2 column 20: invalid type: integer `5`, expected a list for \"resourceMetrics\""
    )]
    #[case(r#"{"resourceMetrics":[null]}"#, "expected an object for \"resourceMetrics\"")]
    #[case(
        r#"{"resourceMetrics":[{"schemaUrl":1}]}"#,
        "expected a string for \"schemaUrl\""
    )]
    #[case(
        r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"sum":{"aggregationTemporality":"x"}}]}]}]}"#,
        "expected an aggregation temporality"
    )]
    #[case(r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"timeUnixNano":-1}]}}]}]}]}"#,
        "invalid type: integer `-1`, expected a whole number from 0 on for \"timeUnixNano\"")]
    #[case(r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"timeUnixNano":1.5}]}}]}]}]}"#,
        "expected a whole number from 0 on")]
    #[case(r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"asInt":"9223372036854775808"}]}}]}]}]}"#,
        "expected a whole number")]
    #[case(r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"asDouble":"inf"}]}}]}]}]}"#,
        "expected a number")]
    fn what_is_wrong_is_named_with_its_place(#[case] json: &str, #[case] wanted: &str) {
        let error = to_protobuf(json.as_bytes(), LIMIT).unwrap_err().to_string();
        assert!(error.starts_with("invalid OTLP JSON at line "), "{error}");
        assert!(error.contains(wanted), "{error}");
    }

    #[test]
    fn i12_nesting_is_bounded() {
        let deep = |depth: usize| {
            let open = r#"{"arrayValue":{"values":["#.repeat(depth);
            let close = "]}}".repeat(depth);
            let json = format!(
                r#"{{"resourceMetrics":[{{"resource":{{"attributes":[{{"key":"a","value":{open}{{"intValue":1}}{close}}}]}}}}]}}"#
            );
            to_protobuf(json.as_bytes(), LIMIT)
        };
        assert!(deep(16).is_ok());
        for depth in [17, 200, 100_000] {
            let error = deep(depth).unwrap_err().to_string();
            assert!(error.contains("attribute nesting exceeds 16"), "{error}");
        }
        let unknown = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(to_protobuf(unknown.as_bytes(), LIMIT).is_err());
    }

    #[test]
    fn i12_the_protobuf_form_is_bounded() {
        let zeros = "0,".repeat(10_000);
        let json = format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"bucketCounts":[{zeros}0]}}]}}}}]}}]}}]}}"#
        );
        let written = to_protobuf(json.as_bytes(), LIMIT).unwrap();
        assert!(written.len() <= bytes_max(json.as_bytes()));
        let refused = to_protobuf(json.as_bytes(), 10_000).unwrap_err();
        assert_eq!(refused, OtlpError::TooLarge { limit: 10_000 });
    }

    proptest! {
        #[test]
        fn i12_arbitrary_text_never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = to_protobuf(text.as_bytes(), LIMIT);
            let _ = to_protobuf(&bytes, LIMIT);
        }
    }
}
