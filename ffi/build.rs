//! The soname; `exports-cc` knows the library by it. cargo-c gives the same.

fn main() {
    println!(
        "cargo:rustc-cdylib-link-arg=-Wl,-soname,libsealane.so.{}",
        env!("CARGO_PKG_VERSION_MAJOR")
    );
    println!("cargo:rerun-if-changed=exports.map");
    println!("cargo:rerun-if-changed=exports-cc");
}
