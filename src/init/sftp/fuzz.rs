//! Packets of clients, as anybody may have made them (see [`crate::fuzzing`]).

use super::request::Packet;

/// One packet without its length: it is understood or not, and what it holds is a part of it.
pub(crate) fn packet(data: &[u8]) {
    if let Ok(packet) = Packet::parse(data) {
        assert!(data.len() >= 5, "a type and a number");
        assert_eq!(Packet::parse(data), Ok(packet));
    }
}
