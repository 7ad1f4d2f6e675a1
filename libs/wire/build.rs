//! Generates the protobuf types and gRPC stubs; protoc is not needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new("../../proto");
    let files = [
        "koios/v1/common.proto",
        "koios/v1/ingester.proto",
        "koios/v1/store.proto",
        "koios/v1/control.proto",
        "prometheus/remote.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure()
        .bytes(".koios.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
