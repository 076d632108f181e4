#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| croft_fuzz_targets::layer::run(data));
