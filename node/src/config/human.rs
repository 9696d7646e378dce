//! Sizes and durations as people write them: `500GB`, `1.5TiB`, `15m`, `1h30m`.
//!
//! A unit is always asked for where leaving it out could mean two things, so that nobody offers a disk a thousand times
//! too small, or waits seconds instead of minutes. Printing gives back text that reads as the same value.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A number of bytes.
///
/// Written as a number and a unit: `B`, `kB`, `MB`, `GB`, `TB`, `PB` (powers of 1000) or `KiB`, `MiB`, `GiB`, `TiB`,
/// `PiB` (powers of 1024), in any case, with or without a space, and with a fraction if it comes out as whole bytes or
/// is rounded down to them. A number alone is bytes. `500G` is refused: it may mean either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct ByteSize(pub u64);

/// A span of time.
///
/// Written as numbers with units `ms`, `s`, `m`, `h`, `d` (24 hours), the largest first: `15m`, `1h30m`, `7d`. A number
/// without a unit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// Why a text is no size or no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HumanError {
    /// No number where one must be.
    #[error("{0:?} does not begin with a number")]
    Number(String),
    /// The unit of a size is not known, or could mean two things.
    #[error("{0:?} has no unit of size: write for example 500GB (powers of 1000) or 500GiB (powers of 1024)")]
    SizeUnit(String),
    /// The unit of a duration is not known, or missing.
    #[error("{0:?} has no unit of time: write for example 90s, 15m, 1h30m or 7d")]
    SpanUnit(String),
    /// The units of a duration do not go from large to small, each once.
    #[error("{0:?} must name each unit once, the largest first, as in 1h30m")]
    Order(String),
    /// More than fits in 64 bits.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

/// Units of size: name in lower case and as printed, bytes. The first that divides a size is the one that it is printed in.
const SIZES: [(&str, &str, u64); 11] = [
    ("pib", "PiB", 1 << 50),
    ("pb", "PB", 1_000_000_000_000_000),
    ("tib", "TiB", 1 << 40),
    ("tb", "TB", 1_000_000_000_000),
    ("gib", "GiB", 1 << 30),
    ("gb", "GB", 1_000_000_000),
    ("mib", "MiB", 1 << 20),
    ("mb", "MB", 1_000_000),
    ("kib", "KiB", 1 << 10),
    ("kb", "kB", 1_000),
    ("b", "B", 1),
];

/// Units of time in milliseconds, largest first.
const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Most digits behind the point that a size may have: enough to name each byte of a PB.
const FRACTION_DIGITS: usize = 15;

impl FromStr for ByteSize {
    type Err = HumanError;

    fn from_str(text: &str) -> Result<Self, HumanError> {
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = unit.trim().to_ascii_lowercase();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let not_a_number = || HumanError::Number(text.into());
        if whole.is_empty() || fraction.contains('.') || fraction.len() > FRACTION_DIGITS {
            return Err(not_a_number());
        }
        let factor = match SIZES.iter().find(|(name, ..)| *name == unit) {
            Some((.., factor)) => u128::from(*factor),
            None if unit.is_empty() && !number.contains('.') => 1,
            None => return Err(HumanError::SizeUnit(text.into())),
        };
        let too_large = || HumanError::TooLarge(text.into());
        let whole = u128::from(whole.parse::<u64>().map_err(|_| too_large())?);
        let mut bytes = whole * factor;
        if !fraction.is_empty() {
            let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| not_a_number())?);
            bytes += fraction.parse::<u128>().map_err(|_| not_a_number())? * factor / scale;
        }
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 != 0 && self.0.is_multiple_of(factor);
        let (name, factor) = SIZES.iter().find(|unit| fits(unit.2)).map_or(("B", 1), |unit| (unit.1, unit.2));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl FromStr for Span {
    type Err = HumanError;

    fn from_str(text: &str) -> Result<Self, HumanError> {
        let mut rest = text.trim();
        let mut millis = 0_u64;
        let mut smaller = &SPANS[..];
        loop {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, tail) = rest.split_at(digits);
            if number.is_empty() {
                return Err(HumanError::Number(text.into()));
            }
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            if !SPANS.iter().any(|(name, _)| *name == unit) {
                return Err(HumanError::SpanUnit(text.into()));
            }
            let Some(at) = smaller.iter().position(|(name, _)| *name == unit) else {
                return Err(HumanError::Order(text.into()));
            };
            let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(smaller[at].1));
            let sum = part.and_then(|part| millis.checked_add(part));
            millis = sum.ok_or_else(|| HumanError::TooLarge(text.into()))?;
            if tail.is_empty() {
                return Ok(Self(Duration::from_millis(millis)));
            }
            (rest, smaller) = (tail, &smaller[at + 1..]);
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (name, factor) in SPANS {
            if millis >= factor {
                write!(f, "{}{name}", millis / factor)?;
                millis %= factor;
            }
        }
        Ok(())
    }
}

/// A number of bytes to look at, rounded: `17 B`, `1.5 KiB`, `256 MiB`.
#[must_use]
pub fn rough(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.95 would be printed with four digits.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = if value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// A number of things: `1 segment`, `2 segments`.
#[must_use]
pub fn many(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// A TOML value that stands for a size: an integer is bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size such as \"500GB\", or a whole number of bytes")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for ByteSize {
    type Error = HumanError;

    fn try_from(value: NumberOrText) -> Result<Self, HumanError> {
        match value {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = HumanError;

    fn try_from(text: String) -> Result<Self, HumanError> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("500GB", 500_000_000_000),
            ("500 gb", 500_000_000_000),
            ("1.5TiB", 3 << 39),
            ("0.1kB", 100),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        assert!(matches!("500G".parse::<ByteSize>(), Err(HumanError::SizeUnit(_))));
        assert!(matches!("1.5".parse::<ByteSize>(), Err(HumanError::SizeUnit(_))));
        assert!(matches!("".parse::<ByteSize>(), Err(HumanError::Number(_))));
        assert!(matches!("-1GB".parse::<ByteSize>(), Err(HumanError::Number(_))));
        assert!(matches!("1.2.3GB".parse::<ByteSize>(), Err(HumanError::Number(_))));
        assert!(matches!("20000PiB".parse::<ByteSize>(), Err(HumanError::TooLarge(_))));
        assert!(matches!("99999999999999999999B".parse::<ByteSize>(), Err(HumanError::TooLarge(_))));
    }

    #[test]
    fn rough_sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1_234_567, "1.2 MiB"),
            (1023 << 20, "1 GiB"),
            (500_000_000_000, "466 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(rough(bytes), text);
        }
    }

    #[test]
    fn spans() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert!(matches!("15".parse::<Span>(), Err(HumanError::SpanUnit(_))));
        assert!(matches!("15 m".parse::<Span>(), Err(HumanError::SpanUnit(_))));
        assert!(matches!("m".parse::<Span>(), Err(HumanError::Number(_))));
        assert!(matches!("1m1h".parse::<Span>(), Err(HumanError::Order(_))));
        assert!(matches!("1m1m".parse::<Span>(), Err(HumanError::Order(_))));
        assert!(matches!("99999999999999999d".parse::<Span>(), Err(HumanError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn printed_text_reads_as_the_same(bytes in any::<u64>(), millis in any::<u64>(), text in ".{0,12}") {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            let span = Span(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            // Any text gives a value or an error, never a panic.
            let _ = (text.parse::<ByteSize>(), text.parse::<Span>());
        }
    }
}
