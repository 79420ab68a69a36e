//! libFuzzer's entry to [`sallyport_fuzz_targets::journal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_fuzz_targets::journal(bytes));
