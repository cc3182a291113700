//! See `inputs::envelope`.

#![no_main]

#[path = "../../session-core/tests/support/inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::envelope(input));
