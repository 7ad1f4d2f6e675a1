//! Series in messages.

use std::fmt::Write as _;

/// Most labels and characters of a description.
const DESCRIBED_LABELS_MAX: usize = 8;
const DESCRIBED_CHARS_MAX: usize = 64;

/// Labels as sent, shortened and escaped, for messages.
pub fn describe_labels<'a>(labels: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> String {
    let short = |bytes: &[u8]| -> String {
        // Four bytes make at least one character, so the cut never needs the rest.
        let head = bytes.get(..DESCRIBED_CHARS_MAX * 4).unwrap_or(bytes);
        let text = String::from_utf8_lossy(head);
        let mut out: String = text.chars().take(DESCRIBED_CHARS_MAX).collect();
        if out.len() < bytes.len() {
            out.push('…');
        }
        out
    };
    let mut out = "{".to_owned();
    for (i, (name, value)) in labels.into_iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        if i == DESCRIBED_LABELS_MAX {
            out.push_str(", …");
            break;
        }
        let _ = write!(out, "{comma}{}={:?}", short(name).escape_debug(), short(value));
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_short_and_escaped() {
        let long = [b'x'; 10_000];
        let labels: [(&[u8], &[u8]); 2] = [(b"a", b"\x1b[31m\r\n"), (b"b\xff", &long)];
        let text = describe_labels(labels);
        assert!(
            text.starts_with("{a=\"\\u{1b}[31m\\r\\n\", b\u{fffd}=\"xxx"),
            "{text}"
        );
        assert!(text.len() < 200, "{}", text.len());
        let eight = "a=\"b\", ".repeat(8);
        let many = describe_labels(std::iter::repeat_n((&b"a"[..], &b"b"[..]), 100));
        assert_eq!(many, format!("{{{eight}…}}"));
    }
}
