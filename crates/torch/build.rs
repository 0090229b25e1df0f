//! Compiles the C++ shim against libtorch.

use std::{env, path::Path, process::exit};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(libtorch) = env::var("LIBTORCH") else {
        eprintln!(
            "no libtorch: set LIBTORCH to a directory with libtorch 2.11, or build with `make`, which obtains it"
        );
        exit(1);
    };
    let include = Path::new(&libtorch).join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .files(["shim/shim.cpp", "shim/schema.cpp"])
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // libtorch's own headers are not written for our warnings.
        .warnings(false)
        .opt_level(2)
        .debug(false)
        .compile("sconce_torch_shim");
    println!("cargo:rustc-link-search=native={libtorch}/lib");
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
}
