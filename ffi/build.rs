//! The soname; `exports-cc` knows the library by it. cargo-c gives the same.

fn main() {
    // Cargo gives the linker that it was told of; another one would leave the symbols without
    // their versions, and nothing would show it.
    println!("cargo:rerun-if-env-changed=CARGO_FEATURE_CAPI");
    let linker = std::env::var("RUSTC_LINKER").unwrap_or_default();
    if std::env::var_os("CARGO_FEATURE_CAPI").is_some() && !linker.ends_with("exports-cc") {
        panic!(
            "the linker is {linker:?}, but only ffi/exports-cc gives libsealane.so its symbol \
             versions: run cargo cinstall in the repository, without another linker in cargo's \
             configuration or CARGO_TARGET_*_LINKER; SEALANE_CC names the compiler that links"
        );
    }
    println!(
        "cargo:rustc-cdylib-link-arg=-Wl,-soname,libsealane.so.{}",
        env!("CARGO_PKG_VERSION_MAJOR")
    );
    println!("cargo:rerun-if-changed=exports.map");
    println!("cargo:rerun-if-changed=exports-cc");
}
