//! libFuzzer's entry to [`sallyport_fuzz_targets::certificate`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_fuzz_targets::certificate(bytes));
