//! Tables for people.

use std::io::{self, Write};

pub use crate::config::units::shown as bytes;

/// Writes rows under a header.
pub fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    io::stdout().lock().write_all(lines(header, rows).as_bytes())
}

/// Rows under a header, each column as wide as its widest cell. Control characters are shown escaped.
pub fn lines<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let shown: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let mut widths = header.map(str::len);
    for row in &shown {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let header = std::iter::once(line(header.to_vec()));
    header.chain(shown.iter().map(|row| line(row.iter().map(String::as_str).collect()))).collect()
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// `45s`, `5m`, `2h`, `2h30m`, `3d`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) if minutes % 60 == 0 => format!("{hours}h"),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let table = [(0, "0s"), (45, "45s"), (300, "5m"), (7200, "2h"), (9000, "2h30m"), (90_000, "1d")];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
    }
}
