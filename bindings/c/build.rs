//! Names the shared library by the version of its binary interface: programs that were linked with another one do
//! not load it.

fn main() {
    println!("cargo:rerun-if-changed=src/abi.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let abi = include_str!("src/abi.rs");
        let version = abi.split("POLYLOCK_ABI_VERSION: u32 = ").nth(1).and_then(|rest| rest.split(';').next());
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpolylock.so.{}", version.unwrap_or("unknown"));
    }
}
