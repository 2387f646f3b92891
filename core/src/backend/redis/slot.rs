//! The slot of a key in a cluster.

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16384;

/// The slot of `key`: of its hash tag, if it has one.
pub(super) fn of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16(hashed.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the cluster specification says.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // As CLUSTER KEYSLOT answers.
        assert_eq!((of("foo"), of("bar"), of("")), (12182, 5061, 0));
        assert_eq!((of("{user1000}.following"), of("{user1000}.followers")), (3443, 3443));
        assert_eq!(of("foo{{bar}}zap"), crc16(b"{bar") % SLOTS);
        assert_eq!((of("foo{}{bar}"), of("a{b")), (crc16(b"foo{}{bar}") % SLOTS, crc16(b"a{b") % SLOTS));
    }
}
