//! `derp_login` of `derp_user::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| derp_user::fuzzing::target("derp_login")(bytes));
