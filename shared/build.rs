//! Compiles the CUDA kernels, in programs with feature `cuda`, by the `nvcc` and for the GPUs that candle's own are compiled by and
//! for (`CUDA_HOME`, `CUDA_COMPUTE_CAP`).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    {
        const FOLDER: &str = "src/backend/candle/cuda";
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("kernels.rs");
        cudaforge::KernelBuilder::new()
            .source_dir(FOLDER)
            .watch([format!("{FOLDER}/common.cuh")])
            .arg("-std=c++17")
            .arg("-O3")
            .build_ptx()?
            .write(out)?;
    }
    Ok(())
}
