//! Compiles the wire schema with a pure Rust compiler: no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=wire/potluck.proto");
    let files = protox::compile(["wire/potluck.proto"], ["wire"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.compile_fds(files)?;
    Ok(())
}
