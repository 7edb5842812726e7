//! The body of a request to the server, multipart or JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = navicache_server::reads_form("multipart/form-data; boundary=B", bytes);
    let _ = navicache_server::reads_form("application/json", bytes);
});
