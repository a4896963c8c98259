#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podspawn::fuzzing::run("reference", data));
