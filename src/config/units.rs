//! Sizes, durations and networks as the configuration writes them.

use std::{net::Ipv4Addr, time::Duration};

/// Why a value could not be understood; completes the sentence "... is not valid: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("{0:?} is not a size; write a number with an optional k, m, g, t, Ki, Mi, Gi or Ti, such as 2g")]
    Size(String),
    #[error("{0:?} is not a duration; write numbers with units s, m, h, such as 90s or 1h30m")]
    Duration(String),
    #[error("{0:?} is not an IPv4 network; write address and prefix length, such as 10.213.0.0/16")]
    Network(String),
}

/// Bytes out of `512m`, `2g`, `1.5Gi`, `4096`. All units are powers of 1024, as Docker's are; case does not matter.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if unit.is_empty() || unit == "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(bad()),
    };
    let value: f64 = number.parse().map_err(|_| bad())?;
    let bytes = value * 1024_f64.powi(power);
    // Exact up to 2^53 bytes, which is more than any of the limits can mean.
    if bytes.is_finite() && bytes <= 9e15 { Ok(bytes as u64) } else { Err(bad()) }
}

/// A duration out of `90s`, `5m`, `2h`, `1h30m`; `0` and `0s` are zero.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(trimmed).map_err(|_| UnitError::Duration(text.to_owned()))
}

/// Address and prefix length out of `10.0.0.0/8`. Bits behind the prefix must be zero.
pub fn parse_network(text: &str) -> Result<(Ipv4Addr, u8), UnitError> {
    let bad = || UnitError::Network(text.to_owned());
    let (address, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
    let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    let host_bits = 32_u32.checked_sub(u32::from(prefix)).ok_or_else(bad)?;
    let host_mask = u32::try_from((1_u64 << host_bits) - 1).unwrap_or(u32::MAX);
    if address.to_bits() & host_mask == 0 { Ok((address, prefix)) } else { Err(bad()) }
}

/// `512B`, `1.5KiB`, `64MiB`: three digits at most before the point, and one after it if there are fewer.
pub fn shown(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut tenths, mut unit) = (bytes.saturating_mul(10), "B");
    for larger in UNITS {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1024, larger);
    }
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{unit}"),
        (whole, _) if whole >= 100 => format!("{whole}{unit}"),
        (whole, part) => format!("{whole}.{part}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_short() {
        let table = [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (64 << 20, "64MiB"),
            ((100 << 20) + (512 << 10), "100MiB"),
            (2 << 30, "2GiB"),
        ];
        for (size, text) in table {
            assert_eq!(shown(size), text);
        }
    }

    #[test]
    fn sizes() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("2g", 2 << 30),
            ("2G", 2 << 30),
            ("512m", 512 << 20),
            ("1.5Gi", 3 << 29),
            ("64MiB", 64 << 20),
            ("8k", 8192),
            ("1t", 1 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "g", "-1", "1x", "1ki2", "1 2", "1e9", "NaN", "i", "ib", "99999999t"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("0s", 0), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "-1s", "1y2x", "h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(parse_network("10.0.0.0/8"), Ok((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert_eq!(parse_network("0.0.0.0/0"), Ok((Ipv4Addr::UNSPECIFIED, 0)));
        for bad in ["10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "x/8", "::/0"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text in ".{0,24}") {
            let _ = (parse_size(&text), parse_duration(&text), parse_network(&text));
        }
    }
}
