//! Numbers, times and names as people read them.

use std::time::Duration;

/// A number of bytes: `17 B`, `1.5 KiB`, `256 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = if value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// Bytes a second, in powers of 1000 as networks and disks are sold: `120 MB/s`.
pub(crate) fn speed(bytes: u64, time: Duration) -> String {
    let rate = bytes as f64 / time.as_secs_f64().max(1e-3) / 1e6;
    if rate < 9.95 { format!("{rate:.1} MB/s") } else { format!("{rate:.0} MB/s") }
}

/// How long it took and, where that says something, how fast it was: `2.1 s, 120 MB/s`, `0.1 s`.
pub(crate) fn pace(bytes: u64, time: Duration) -> String {
    if bytes < 1_000_000 { span(time) } else { format!("{}, {}", span(time), speed(bytes, time)) }
}

/// A span of time: `0.3 s`, `12 s`, `4 min 05 s`, `3 h 10 min`, `5 d 02 h`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{:.0} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A probability as a percentage, never rounded up to certainty: `94.3 %`, `99.87 %`, `99.99957 %`.
pub(crate) fn percent(probability: f64) -> String {
    let missing = 1.0 - probability;
    if missing <= 0.0 {
        return "100 %".into();
    }
    // Two digits more than there are nines.
    let digits = (-missing.log10()).floor().clamp(1.0, 10.0) as usize;
    let scale = 10f64.powi(digits as i32);
    // A product that should be whole may come out a little below.
    let floored = ((probability * 100.0 * scale) + 1e-6).floor() / scale;
    format!("{floored:.digits$} %")
}

/// `1 file`, `3 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Milliseconds since 1970 as `2026-11-21 10:12 UTC`.
pub(crate) fn date(ms: u64) -> String {
    let minutes = ms / 60_000;
    let (days, minutes) = (minutes / 1440, minutes % 1440);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// The Gregorian date of a day since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Permission bits with the kind in front, as `ls -l` has them.
pub(crate) fn mode(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if mode >> shift & bit != 0 { letter } else { '-' });
        }
    }
    text
}

/// A path for people: control characters and bytes that are no UTF-8 are escaped, so that no name moves the cursor.
pub(crate) fn name(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_827_696_000), "2000-02-29 12:34 UTC");
        assert_eq!(date(1_795_256_040_000), "2026-11-21 10:14 UTC");
        assert_eq!(span(Duration::from_millis(340)), "0.3 s");
        assert_eq!(span(Duration::from_secs(245)), "4 min 05 s");
        assert_eq!(pace(5, Duration::from_millis(100)), "0.1 s");
        assert_eq!(pace(50_000_000, Duration::from_secs(2)), "2.0 s, 25 MB/s");
        assert_eq!(span(Duration::from_secs(100_000)), "1 d 03 h");
    }

    #[test]
    fn certainty_is_never_rounded_up() {
        assert_eq!(percent(0.943_7), "94.3 %");
        assert_eq!(percent(0.998_77), "99.87 %");
        assert_eq!(percent(0.999_999_96), "99.9999960 %");
        assert_eq!(percent(0.5), "50.0 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.0), "0.0 %");
    }

    #[test]
    fn names_cannot_play_with_the_terminal() {
        assert_eq!(name(b"a/\x1b[2Jb\xff\n"), "a/\\u{1b}[2Jb\\xff\\n");
        assert_eq!(name("größe".as_bytes()), "größe");
        assert_eq!(mode('-', 0o640), "-rw-r-----");
        assert_eq!((count(1, "file"), count(2, "file")), ("1 file".into(), "2 files".into()));
    }
}
