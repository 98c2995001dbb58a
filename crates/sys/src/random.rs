//! Random bytes from the kernel: `getrandom(2)`.

use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

/// Fills `buffer` with random bytes that are fit for keys and tokens.
///
/// # Errors
///
/// `ENOSYS` below Linux 3.17; nothing else for a valid buffer.
pub fn fill(buffer: &mut [u8]) -> Result<(), Errno> {
    let mut at = 0;
    while at < buffer.len() {
        match rustix::rand::getrandom(&mut buffer[at..], GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// `N` random bytes.
///
/// # Errors
///
/// As [`fill`].
pub fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut buffer = [0; N];
    fill(&mut buffer)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>().unwrap(), bytes::<32>().unwrap());
    }
}
