//! Compiles the protos in Rust (no protoc needed) and keeps the descriptor set for gRPC reflection.

#![expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script where to write by its environment"
)]

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");

    // error_details.proto is imported by nothing, yet must be in the descriptor set: with it in reflection,
    // grpcurl prints the details of an error instead of bytes.
    let files = ["cognito/signout/v1/sign_out.proto", "google/rpc/error_details.proto"];
    let descriptors = protox::compile(files, ["proto"])?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    // `compile_fds` does not write it, although the option for it exists.
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .codec_path("crate::codec::SmallMessages")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
