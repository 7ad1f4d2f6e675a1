//! Values as people write them.

use std::path::PathBuf;
use std::time::Duration;

use koios_wire::otlp::TranslationStrategy;

use crate::cors::CorsOrigin;
use crate::settings::LogFormat;

/// A type that settings may have.
pub(super) trait Value: Sized {
    /// What `--help` calls it.
    const KIND: &'static str;

    /// Reads it; the error says what it must be.
    fn parse(text: &str) -> Result<Self, String>;

    /// Writes it so that [`Self::parse`] reads the same.
    fn show(&self) -> String;
}

/// Reads `1h30m`, `500ms`, `7d`, `2w`, `0`: numbers with the units ms, s, m, h, d, w, y, largest first.
///
/// # Errors
/// A sentence that says what a duration is.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "not a duration (write for example 30s, 15m, 6h or 150d)";
    const UNITS: [(&str, u64); 7] = [
        ("y", 365 * 86_400_000),
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("ms", 1),
        ("m", 60_000),
        ("s", 1000),
    ];
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut total_ms, mut last_unit_ms) = (text, 0u64, u64::MAX);
    if rest.is_empty() {
        return Err(HINT.to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| HINT.to_owned())?;
        let (unit, unit_ms) = UNITS
            .into_iter()
            .find(|(u, _)| tail.starts_with(u))
            .ok_or_else(|| HINT.to_owned())?;
        if unit_ms >= last_unit_ms {
            return Err(HINT.to_owned());
        }
        last_unit_ms = unit_ms;
        total_ms = number
            .checked_mul(unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(|| "longer than this program can count".to_owned())?;
        rest = tail.get(unit.len()..).unwrap_or("");
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration as [`parse_duration`] reads it.
pub fn format_duration(d: Duration) -> String {
    let mut ms = d.as_millis() as u64;
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, unit_ms) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ] {
        if ms >= unit_ms {
            out.push_str(&format!("{}{unit}", ms / unit_ms));
            ms %= unit_ms;
        }
    }
    out
}

const BYTE_UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads `64MiB`, `2GB` or plain bytes.
///
/// # Errors
/// A sentence that says what a size is.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const HINT: &str = "not a size (write for example 64MiB, 2GB or plain bytes)";
    let (number, factor) = BYTE_UNITS
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .unwrap_or_else(|| (text.strip_suffix('B').unwrap_or(text), 1));
    let number: u64 = number.trim_end().parse().map_err(|_| HINT.to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "larger than this program can count".to_owned())
}

/// Writes a size as [`parse_bytes`] reads it.
pub fn format_bytes(bytes: u64) -> String {
    BYTE_UNITS
        .into_iter()
        .take(4)
        .rev()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(
            || bytes.to_string(),
            |(unit, factor)| format!("{}{unit}", bytes / factor),
        )
}

impl Value for Duration {
    const KIND: &'static str = "DURATION";

    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }

    fn show(&self) -> String {
        format_duration(*self)
    }
}

/// Nothing where nothing is said: that is no value to write.
impl Value for Option<Duration> {
    const KIND: &'static str = "DURATION";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("empty: write a duration, or leave the key out".to_owned()),
            text => parse_duration(text).map(Some),
        }
    }

    fn show(&self) -> String {
        self.map(format_duration).unwrap_or_default()
    }
}

impl Value for String {
    const KIND: &'static str = "TEXT";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const KIND: &'static str = "PATH";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty path".to_owned());
        }
        Ok(text.into())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const KIND: &'static str = "NUMBER";

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("not a number from 0 to {}", <$t>::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
numbers!(u32, u64, usize);

impl Value for bool {
    const KIND: &'static str = "true|false";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be true or false".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for TranslationStrategy {
    const KIND: &'static str = "STRATEGY";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

/// Names with commas between them.
pub(super) fn parse_names(text: &str) -> Vec<String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

impl Value for LogFormat {
    const KIND: &'static str = "text|json";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json".to_owned()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Json => "json".to_owned(),
        }
    }
}

impl Value for CorsOrigin {
    const KIND: &'static str = "REGEX";

    fn parse(text: &str) -> Result<Self, String> {
        Self::of(text).map_err(|e| e.to_string())
    }

    fn show(&self) -> String {
        self.pattern().to_owned()
    }
}

impl Value for Vec<String> {
    const KIND: &'static str = "ADDR,…";

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                let addr = part.split_once('=').map_or(part, |(_, addr)| addr);
                check_address(addr).map(|()| part.to_owned())
            })
            .collect()
    }

    fn show(&self) -> String {
        self.join(",")
    }
}

/// Checks `host:port`.
pub(super) fn check_address(text: &str) -> Result<(), String> {
    let port = text
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(_) => Ok(()),
        None => Err("not an address (write host:port)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_survive_a_round_trip() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("150d", 150 * 86_400_000),
            ("0", 0),
            ("2w", 14 * 86_400_000),
            ("1y180d", (365 + 180) * 86_400_000),
        ] {
            let d = parse_duration(text).unwrap();
            assert_eq!(d.as_millis() as u64, ms);
            assert_eq!(parse_duration(&format_duration(d)), Ok(d));
        }
        for bad in [
            "",
            "6",
            "h",
            "-1s",
            "1.5h",
            "6hours",
            "1m1h",
            "99999999999999999y",
            "1s1s",
            "1y180",
            "1y 180d",
            "1y,180d",
            "1y180dd",
            "1yd",
            "1y ",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_survive_a_round_trip() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("2GB", 2_000_000_000),
            ("17", 17),
            ("0", 0),
            ("9B", 9),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes));
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "64mib", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
