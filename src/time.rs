//! Times as numbers, for what is written to files and sent to others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The duration in milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time in milliseconds since the epoch; 0 if it was before that.
pub fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_that_do_not_overflow() {
        assert_eq!(millis(Duration::from_micros(1999)), 1);
        assert_eq!(millis(Duration::MAX), u64::MAX);
        assert_eq!(unix_millis(UNIX_EPOCH + Duration::from_secs(2)), 2000);
        assert_eq!(unix_millis(UNIX_EPOCH - Duration::from_secs(2)), 0);
    }
}
