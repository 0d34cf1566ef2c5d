//! Generates the client from the proto; `PROTO` names the folder, if it is not the one of the repository.

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=PROTO");
    let proto = env::var("PROTO").unwrap_or_else(|_| "../../proto".to_owned());
    println!("cargo::rerun-if-changed={proto}");
    let files = protox::compile(["cognito/signout/v1/sign_out.proto"], [proto])?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(files)?;
    Ok(())
}
