//! Recognises disco packets, the clients' path discovery messages, by their envelope.

/// "TS" and U+1F4AC, the first bytes of every disco packet.
const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// Magic, the sender's public key and the nonce: the shortest envelope.
const ENVELOPE_LENGTH: usize = 6 + 32 + 24;

/// Whether `packet` looks like disco: long enough for the envelope, and starting with its magic.
pub fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= ENVELOPE_LENGTH && packet.starts_with(&MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_magic_and_a_whole_envelope() {
        let mut packet = [0; ENVELOPE_LENGTH];
        packet[..6].copy_from_slice(&MAGIC);
        assert!(looks_like_disco(&packet));
        assert!(!looks_like_disco(&packet[..61]));
        packet[5] ^= 1;
        assert!(!looks_like_disco(&packet));
        assert!(!looks_like_disco(&[]));
    }
}
