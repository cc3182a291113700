//! What a record from outside may cost in memory. Alone in its process, for the allocator counts for all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/inputs.rs"]
mod inputs;

use bytes::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use inputs::{MAX_INFLATED, Stored, with_checksum};
use peak_alloc::PeakAlloc;
use session_core::ErrorKind;
use std::io::Write as _;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The inflater's window and tables, a runtime's odds and ends.
const BESIDES: usize = 128 << 10;

/// The most that opening this record holds at once.
fn peak_of_opening(bytes: Bytes, kind: Option<ErrorKind>) -> usize {
    let stored = Stored::new(bytes);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let opened = stored.open();
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    assert_eq!(opened.err().map(|error| error.kind()), kind);
    peak
}

fn claiming(claim: u32, content: &[u8]) -> Bytes {
    let mut encoder = DeflateEncoder::new(claim.to_le_bytes().to_vec(), Compression::fast());
    encoder.write_all(content).unwrap();
    with_checksum([1, 1, 0, 0], &encoder.finish().unwrap())
}

fn nothing_is_allocated_on_the_word_of_a_record() {
    assert!(peak_of_opening(Bytes::from_static(b"warm up"), Some(ErrorKind::Damaged)) < BESIDES);
    let bomb = vec![0; 4 << 20];
    for claim in [0, 1 << 10, MAX_INFLATED as u32] {
        let peak = peak_of_opening(claiming(claim, &bomb), Some(ErrorKind::Damaged));
        println!("4 MiB of zeros that claim to be {claim} bytes: {peak} bytes at the most");
        assert!(peak < BESIDES + 3 * MAX_INFLATED, "{peak}");
    }
    for claim in [MAX_INFLATED as u32 + 1, u32::MAX] {
        let peak = peak_of_opening(claiming(claim, &bomb), Some(ErrorKind::TooLarge));
        assert!(peak < BESIDES, "{claim}: {peak}");
    }
    // An empty stream, and lengths inside the record that promise four gigabytes.
    let peak = peak_of_opening(claiming(MAX_INFLATED as u32, &[]), Some(ErrorKind::Damaged));
    assert!(peak < BESIDES, "{peak}");
    let mut many = vec![0];
    many.extend(u64::MAX.to_le_bytes());
    many.extend(u32::MAX.to_le_bytes());
    let mut long = many.clone();
    long[9..13].copy_from_slice(&1_u32.to_le_bytes());
    long.extend([1, 0, b'a']);
    long.extend(u32::MAX.to_le_bytes());
    for body in [many, long] {
        let peak = peak_of_opening(with_checksum([1, 0, 0, 0], &body), Some(ErrorKind::Damaged));
        assert!(peak < BESIDES, "{peak}");
    }
}

#[test]
fn records_from_outside_cost_what_they_are() {
    nothing_is_allocated_on_the_word_of_a_record();
    a_map_of_nothings_is_bounded_too();
}

/// The smallest values that there can be: what a record of them costs for each of its bytes.
fn a_map_of_nothings_is_bounded_too() {
    let mut body = vec![0];
    body.extend(100_000_000_000_000_u64.to_le_bytes());
    let number = 1_500_u32;
    body.extend(number.to_le_bytes());
    for value in 0..number {
        body.extend([2, 0]);
        body.extend([b'A' + (value / 64) as u8, b'!' + (value % 64) as u8]);
        body.extend([0; 4]);
    }
    assert!(body.len() < MAX_INFLATED);
    let peak = peak_of_opening(with_checksum([1, 0, 0, 0], &body), None);
    println!("{} bytes of the smallest values: {peak} bytes", body.len());
    assert!(peak < BESIDES + 24 * body.len(), "{peak}");
}
