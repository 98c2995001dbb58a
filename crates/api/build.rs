//! Generates Rust from our .proto text with protox: no protoc is needed.

use std::error::Error;

const PROTO: &str = "proto/runtime/v1/api.proto";

/// Messages whose derived Debug would show a secret; lib.rs writes theirs by hand.
const SECRET: [&str; 2] = [".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
