//! See `inputs::record_file`.

#![no_main]

#[path = "../../session-file/tests/support/inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::record_file(input));
