//! Attribute values as text.
//!
//! **Source**: OpenTelemetry Collector `pdata/pcommon` `Value.AsString`: numbers as ECMAScript writes them, bytes in base64,
//! lists and maps as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::OtlpError;
use crate::protobuf::{BYTES, FIXED64, Reader, VARINT};
use crate::strings::{Full, Strings};

/// Deepest nesting of lists and maps.
pub(super) const DEPTH_MAX: usize = 16;
/// Most attributes of one resource, scope, data point or map.
pub(super) const ATTRIBUTES_MAX: usize = 1024;

/// A value before it is text.
#[derive(Clone, Copy)]
enum Value<'a> {
    Nothing,
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    List(Reader<'a>),
    Map(Reader<'a>),
    Bytes(&'a [u8]),
}

/// An attribute's key, and its value if it has one.
pub(super) type Attribute<'a> = (&'a [u8], Option<Reader<'a>>);

/// Reads a `KeyValue`.
pub(super) fn attribute(mut message: Reader<'_>) -> Result<Attribute<'_>, OtlpError> {
    let (mut key, mut value): Attribute<'_> = (&[], None);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => {
                tag.expect(BYTES)?;
                key = message.bytes()?;
            }
            2 => {
                tag.expect(BYTES)?;
                value = Some(message.message()?);
            }
            _ => message.skip(tag)?,
        }
    }
    Ok((key, value))
}

/// Reads a `KeyValue` and adds it to `all`, unless these are too many; its value is no deeper than it may be.
pub(super) fn collect<'a>(message: Reader<'a>, all: &mut Vec<Attribute<'a>>) -> Result<(), OtlpError> {
    let attribute = attribute(message)?;
    if all.len() >= ATTRIBUTES_MAX {
        return Err(OtlpError::TooManyAttributes);
    }
    if let Some(value) = attribute.1 {
        check_depth(value, 0)?;
    }
    all.push(attribute);
    Ok(())
}

fn parse(mut message: Reader<'_>) -> Result<Value<'_>, OtlpError> {
    let mut value = Value::Nothing;
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 | 5 | 6 | 7 => tag.expect(BYTES)?,
            2 | 3 => tag.expect(VARINT)?,
            4 => tag.expect(FIXED64)?,
            _ => {}
        }
        match tag.field {
            1 => value = Value::Text(message.bytes()?),
            2 => value = Value::Bool(message.varint()? != 0),
            3 => value = Value::Int(message.varint()? as i64),
            4 => value = Value::Double(message.double()?),
            5 => value = Value::List(message.message()?),
            6 => value = Value::Map(message.message()?),
            7 => value = Value::Bytes(message.bytes()?),
            _ => message.skip(tag)?,
        }
    }
    Ok(value)
}

/// The items of a list, or the attributes of a map: both are field 1.
fn each<'a>(
    mut items: Reader<'a>,
    mut item: impl FnMut(Reader<'a>) -> Result<(), OtlpError>,
) -> Result<(), OtlpError> {
    while !items.done() {
        let tag = items.tag()?;
        if tag.field == 1 {
            tag.expect(BYTES)?;
            item(items.message()?)?;
        } else {
            items.skip(tag)?;
        }
    }
    Ok(())
}

fn check_depth(value: Reader<'_>, depth: usize) -> Result<(), OtlpError> {
    let value = parse(value)?;
    if matches!(value, Value::List(_) | Value::Map(_)) && depth >= DEPTH_MAX {
        return Err(OtlpError::TooDeep);
    }
    match value {
        Value::List(items) => each(items, |item| check_depth(item, depth + 1)),
        Value::Map(items) => each(items, |item| match attribute(item)?.1 {
            Some(value) => check_depth(value, depth + 1),
            None => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// A value whose depth was checked, as text: from the request if it is text there.
pub(super) fn text<'a>(value: Option<Reader<'a>>, strings: &'a Strings) -> Result<&'a [u8], OtlpError> {
    let Some(value) = value else {
        return Ok(&[]);
    };
    let made = match parse(value)? {
        Value::Text(text) => return Ok(text),
        Value::Nothing => return Ok(&[]),
        Value::Bool(true) => return Ok(b"true"),
        Value::Bool(false) => return Ok(b"false"),
        Value::Int(n) => n.to_string(),
        Value::Double(v) => double(v),
        Value::Bytes(bytes) => base64(bytes, strings)?,
        value @ (Value::List(_) | Value::Map(_)) => {
            let mut json = Json {
                out: String::new(),
                room: strings.room(),
                full: strings.full(),
                finite: true,
            };
            json.value(value)?;
            // As the encoder of the Collector, which gives nothing then.
            if json.finite { json.out } else { String::new() }
        }
    };
    Ok(strings.add(made.as_bytes())?)
}

fn base64(bytes: &[u8], strings: &Strings) -> Result<String, OtlpError> {
    if bytes.len() > strings.room() {
        return Err(strings.full().into());
    }
    Ok(STANDARD.encode(bytes))
}

/// As ECMAScript writes numbers.
fn double(v: f64) -> String {
    let magnitude = v.abs();
    if v.is_nan() {
        "NaN".to_owned()
    } else if v.is_infinite() {
        if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else if magnitude != 0.0 && magnitude < 1e-6 {
        format!("{v:e}")
    } else if magnitude >= 1e21 {
        format!("{v:e}").replace('e', "e+")
    } else {
        v.to_string()
    }
}

struct Json {
    out: String,
    room: usize,
    /// What is said when there is none.
    full: Full,
    finite: bool,
}

impl Json {
    fn value(&mut self, value: Value<'_>) -> Result<(), OtlpError> {
        if self.out.len() > self.room {
            return Err(self.full.into());
        }
        match value {
            Value::Nothing => self.out.push_str("null"),
            Value::Text(text) => self.string(text),
            Value::Bool(v) => self.out.push_str(if v { "true" } else { "false" }),
            Value::Int(n) => drop(write!(self.out, "{n}")),
            Value::Double(v) => {
                self.finite &= v.is_finite();
                self.out.push_str(&double(v));
            }
            Value::Bytes(bytes) => {
                if bytes.len() > self.room {
                    return Err(self.full.into());
                }
                self.string(STANDARD.encode(bytes).as_bytes());
            }
            Value::List(items) => {
                let mut open = '[';
                each(items, |item| {
                    self.out.push(std::mem::replace(&mut open, ','));
                    self.value(parse(item)?)
                })?;
                self.close(open, "[]");
            }
            Value::Map(items) => {
                // Sorted, and the last of a name counts.
                let mut sorted = BTreeMap::new();
                each(items, |item| {
                    let (key, value) = attribute(item)?;
                    sorted.insert(key, value);
                    match sorted.len() > ATTRIBUTES_MAX {
                        true => Err(OtlpError::TooManyAttributes),
                        false => Ok(()),
                    }
                })?;
                let mut open = '{';
                for (key, value) in sorted {
                    self.out.push(std::mem::replace(&mut open, ','));
                    self.string(key);
                    self.out.push(':');
                    self.value(value.map_or(Ok(Value::Nothing), parse)?)?;
                }
                self.close(open, "{}");
            }
        }
        Ok(())
    }

    fn close(&mut self, open: char, empty: &str) {
        if open == ',' {
            self.out.extend(empty.chars().last());
        } else {
            self.out.push_str(empty);
        }
    }

    fn string(&mut self, text: &[u8]) {
        self.out.push('"');
        for c in String::from_utf8_lossy(text).chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}' => {
                    let _ = write!(self.out, "\\u{:04x}", u32::from(c));
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::test_messages::{Message, list, map};
    use super::*;

    fn shown(value: &Message) -> String {
        let strings = Strings::new(1 << 20);
        let text = text(Some(Reader::new(&value.0)), &strings).unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[rstest]
    #[case(0.0, "0")]
    #[case(-0.0, "-0")]
    #[case(1.5, "1.5")]
    #[case(1e20, "100000000000000000000")]
    #[case(1e21, "1e+21")]
    #[case(-1.25e300, "-1.25e+300")]
    #[case(0.000_001, "0.000001")]
    #[case(1e-7, "1e-7")]
    #[case(f64::INFINITY, "Infinity")]
    #[case(f64::NEG_INFINITY, "-Infinity")]
    #[case(f64::NAN, "NaN")]
    fn doubles_are_written_as_ecmascript_does(#[case] v: f64, #[case] wanted: &str) {
        assert_eq!(shown(&Message::default().double(4, v)), wanted);
    }

    #[test]
    fn values_become_text() {
        let message = Message::default;
        assert_eq!(shown(&message()), "");
        assert_eq!(shown(&message().bytes(1, "x\"y")), "x\"y");
        assert_eq!(shown(&message().number(2, 1)), "true");
        assert_eq!(shown(&message().number(2, 0)), "false");
        assert_eq!(shown(&message().number(3, -5i64 as u64)), "-5");
        assert_eq!(shown(&message().bytes(7, [0xff, 0xfe])), "//4=");
        let inner = map(&[
            ("b", message().number(3, 1)),
            ("a", message().bytes(1, "<\u{1}\n\u{2028}\"")),
        ]);
        let nested = list(&[inner, list(&[]), map(&[]), message(), message().double(4, 0.5)]);
        assert_eq!(
            shown(&nested),
            "[{\"a\":\"<\\u0001\\n\\u2028\\\"\",\"b\":1},[],{},null,0.5]"
        );
        assert_eq!(shown(&list(&[message().double(4, f64::NAN)])), "");
    }

    #[test]
    fn i12_nesting_and_numbers_are_bounded() {
        let nest = |depth| (0..depth).fold(Message::default().number(3, 1), |m, _| list(&[m]));
        let collected = |value: &Message| {
            let attribute = Message::default().bytes(1, "a").message(2, value);
            collect(Reader::new(&attribute.0), &mut Vec::new())
        };
        assert_eq!(collected(&nest(16)), Ok(()));
        assert_eq!(collected(&nest(17)), Err(OtlpError::TooDeep));
        assert_eq!(collected(&nest(200)), Err(OtlpError::TooDeep));
        assert_eq!(
            OtlpError::TooDeep.to_string(),
            "attribute nesting exceeds 16: send attributes that are nested less"
        );
        let mut all = vec![(&b""[..], None); ATTRIBUTES_MAX];
        let attribute = Message::default().bytes(1, "a");
        assert_eq!(
            collect(Reader::new(&attribute.0), &mut all),
            Err(OtlpError::TooManyAttributes)
        );
    }
}
