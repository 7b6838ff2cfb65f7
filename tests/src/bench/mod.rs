//! What `rscapret-bench` measures: see `cargo xtask bench`.

mod chromium;
mod compare;
pub mod frozen;
pub mod llama_step;
mod load;
mod training;

use std::{fmt, path::PathBuf, process::Command, sync::OnceLock, time::Instant};

use rscapret::{
    Backend, Candle, Error, Result, WebGpu,
    backend::webgpu::Options,
    bench::{self, Demo, Place, Row, chosen},
    error::Context,
};
use rscapret_trainer::cli::device::cuda;

use crate::tests_dir;

/// Of rows of an NVIDIA GPU through CUDA.
const CUDA: &str = "/cuda";
/// How often a measurement is repeated, at most.
const PATIENCE: usize = 7;

/// Runs what `names` choose and hands on each row as it comes.
///
/// # Errors
/// A model that cannot be loaded or computes what is not finite; what `emit` answers.
pub fn run(names: &[String], mut emit: impl FnMut(Row) -> Result<()>) -> Result<()> {
    let file = load::ModelFile::if_wanted(names)?;
    let on_cpu = place(Candle::cpu(), "", threads());
    models(names, &on_cpu, &mut emit)?;
    file.iter().try_for_each(|file| file.native(names, &on_cpu, &mut emit))?;
    // Without a GPU its rows are absent.
    if let Ok(gpu) = pollster::block_on(WebGpu::open(Options::default())) {
        let adapter = gpu.adapter();
        let conditions = format!("{} through {}", adapter.name, adapter.through);
        let short = adapter.is_software;
        let patience = if short { 1 } else { PATIENCE };
        let place = Place { patience, short, ..place(gpu, "/webgpu", conditions) };
        pollster::block_on(bench::run_gpu(&place, names, &mut emit))?;
        models(names, &place, &mut emit)?;
        file.iter().try_for_each(|file| file.native(names, &place, &mut emit))?;
    }
    // Candle's own kernels, in a program that was built with CUDA.
    if bench::names().any(|name| chosen(names, &format!("{name}{CUDA}")))
        && let Ok(gpu) = cuda(0)
    {
        models(names, &place(gpu, CUDA, "candle on the first NVIDIA GPU".to_string()), &mut emit)?;
    }
    chromium::run(names, &mut emit)?;
    file.iter().try_for_each(|file| file.chromium(names, &mut emit))?;
    compare::run(names, &mut emit)?;
    for row in training::demo(names)?.into_iter().chain(training::features(names)?) {
        emit(row)?;
    }
    frozen::run(names, &mut emit)?;
    llama_step::run(names, &mut emit)
}

/// Names of all rows that there can be.
pub fn names() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let native = [(false, ""), (true, "/webgpu"), (false, CUDA)];
    for (gpu, suffix) in native.into_iter().chain([false, true].into_iter().zip(chromium::SUFFIXES)) {
        let only_gpu = bench::gpu_names().filter(|_| gpu);
        all.extend(bench::names().chain(only_gpu).map(|name| format!("{name}{suffix}")));
    }
    all.extend(load::names());
    all.extend(compare::names());
    all.extend(training::DEMO.iter().chain([&training::FEATURES]).map(ToString::to_string));
    all.extend(frozen::names());
    all.extend(llama_step::names());
    all
}

/// The models on a backend of this machine.
fn models<B: Backend>(names: &[String], place: &Place<B>, emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let demo = Demo { llm: demo_file("llm.gguf")?, vision: demo_file("vision.gguf")? };
    pollster::block_on(bench::run(place, names, demo, emit))
}

fn place<B>(backend: B, suffix: &'static str, conditions: String) -> Place<B> {
    Place { backend, clock, suffix, conditions, patience: PATIENCE, short: false, room: true }
}

/// What a measurement answers that this program makes in a process of its own, asked for by `arguments`.
fn in_child<T: serde::de::DeserializeOwned>(arguments: &[&str]) -> Result<T> {
    let program = on_disk(std::env::current_exe(), "this program")?;
    let output = on_disk(Command::new(&program).arg("--child").args(arguments).output(), program.display())?;
    if !output.status.success() {
        return Err(Error::Backend(format!(
            "expected a measurement but found: {}",
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|e| Error::Malformed(format!("expected a measurement but found {e} in {text}")))
}

fn clock() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

fn threads() -> String {
    format!("{} threads at most", std::thread::available_parallelism().map_or(1, usize::from))
}

/// The bytes of a file of the demo bundle, if the bundle is there.
fn demo_file(name: &str) -> Result<Option<Vec<u8>>> {
    let path = demo_folder().join(name);
    if !path.exists() {
        return Ok(None);
    }
    on_disk(std::fs::read(&path), path.display()).map(Some)
}

fn demo_folder() -> PathBuf {
    tests_dir().join("../models/demo")
}

fn on_disk<T>(result: std::io::Result<T>, path: impl fmt::Display) -> Result<T> {
    result.map_err(|e| Error::Io(e.to_string())).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtask_knows_every_name() {
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let mut known = xtask::benchmarks();
        // Of files, which xtask looks at itself.
        known.retain(|name| !name.starts_with("wasm/"));
        assert_eq!(sorted(known), sorted(names()));
    }

    #[test]
    fn rows_carry_what_xtask_reads() {
        let mut rows = Vec::new();
        let mut keep = |row: Row| {
            rows.push(serde_json::to_value(row).unwrap());
            Ok(())
        };
        models(&["prefill/demo".to_string()], &place(Candle::cpu(), "", threads()), &mut keep).unwrap();
        assert_eq!((&rows[0]["name"], &rows[0]["unit"]), (&"prefill/demo".into(), &"tokens/s".into()));
        assert!(rows[0]["value"].as_f64().unwrap() > 0.0 && rows[0]["note"].is_string(), "{rows:?}");
    }
}
