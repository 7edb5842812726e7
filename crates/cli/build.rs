//! Lets the program that is linked with CUDA find its libraries where they were when it was built.

fn main() {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let is_cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    let is_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if let (true, true, Ok(home)) = (is_cuda, is_linux, std::env::var("CUDA_HOME")) {
        // The older kind of path, which counts for libraries that libraries open too: NVRTC has one such.
        println!("cargo:rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,{home}/lib64");
    }
}
