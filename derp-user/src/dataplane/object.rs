//! The kernel program this binary was built with, if any.

/// Returns the object that was embedded at build time.
#[cfg(ebpf_object)]
#[must_use]
pub fn embedded_object() -> Option<&'static [u8]> {
    Some(aya::include_bytes_aligned!(env!("DERPD_EBPF_OBJECT")))
}

/// Returns the object that was embedded at build time.
#[cfg(not(ebpf_object))]
#[must_use]
pub fn embedded_object() -> Option<&'static [u8]> {
    None
}

/// Returns the first 16 hex digits of the embedded object's SHA-256, for the start-up log and
/// `--version`.
#[must_use]
pub fn object_hash() -> Option<String> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, embedded_object()?);
    Some(digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}
