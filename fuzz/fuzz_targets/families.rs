#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| koios_testkit::fuzz::families(bytes));
