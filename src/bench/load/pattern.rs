//! Content that is known from its place: every byte of a file follows from a stamp and the offset, so that what is read
//! can be checked without keeping what was written, and a block at a wrong place is as wrong as a damaged one.

use std::ops::{Deref, DerefMut};

/// Strictest alignment in bytes that O_DIRECT asks for in practice.
const ALIGNMENT: usize = 4096;
/// Bytes that one step of the pattern covers.
const WORD: usize = size_of::<u64>();

/// Fills `buffer` with what belongs at `offset` (bytes, a multiple of 8) under `stamp`.
pub fn fill(buffer: &mut [u8], stamp: u64, offset: u64) {
    for (word, bytes) in (offset / WORD as u64..).zip(buffer.chunks_mut(WORD)) {
        let value = mix(word ^ mix(stamp)).to_le_bytes();
        bytes.copy_from_slice(&value[..bytes.len()]);
    }
}

/// What belongs at `offset` (bytes, a multiple of 8) under `stamp`.
#[must_use]
pub fn content(length: usize, stamp: u64, offset: u64) -> Vec<u8> {
    let mut content = vec![0; length];
    fill(&mut content, stamp, offset);
    content
}

/// The finalizer of splitmix64: every bit of the input changes half of the output.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Memory that O_DIRECT takes.
#[derive(Debug)]
pub struct Aligned {
    space: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `length` bytes of zeros.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let space = vec![0; length + ALIGNMENT];
        let start = space.as_ptr().align_offset(ALIGNMENT);
        Self { space, start, length }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.space[self.start..][..self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.space[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_same_alone_and_in_the_whole() {
        let whole = content(4096, 7, 0);
        assert_eq!(content(100, 7, 1024), whole[1024..1124]);
        assert_eq!(content(3, 7, 8), whole[8..11]);
    }

    #[test]
    fn another_stamp_or_place_is_other_content() {
        let here = content(4096, 7, 8192);
        let same = |other: &[u8]| here.chunks(8).zip(other.chunks(8)).filter(|(a, b)| a == b).count();
        assert_eq!(same(&content(4096, 8, 8192)), 0);
        assert_eq!(same(&content(4096, 7, 4096)), 0);
        assert_eq!(same(&content(4096, 7, 8200)), 0);
    }

    #[test]
    fn buffers_lie_where_direct_io_wants_them() {
        let mut buffer = Aligned::new(1 << 20);
        assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
        fill(&mut buffer, 1, 0);
        assert_eq!(*buffer, content(1 << 20, 1, 0));
    }
}
