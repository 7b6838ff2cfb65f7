//! What is asked of a GPU alone: how near its kernels come to the speed of its memory, and what a token costs the host.

use super::{
    Out, Place, Row,
    llama::{random, small_config},
    random::Random,
};
use crate::{
    backend::{Backend, Candle, WebGpu, webgpu::weight_bytes},
    error::{Error, Result},
    llama::KvCache,
    weights::{Dtype, RawTensor, TensorInfo, quant::dequantize},
};

const COPY: &str = "bandwidth/copy";
const UPLOAD: &str = "upload/Q4_0";
const TOKEN: [&str; 2] = ["dispatches/110M/Q4_0", "encode-token/110M/Q4_0"];
/// The way up of LLaMA-2-7B's MLPs.
const SHAPE: [usize; 2] = [11_008, 4096];
const TYPES: [(&str, Dtype); 5] = [
    ("matvec/11008x4096/F16", Dtype::F16),
    ("matvec/11008x4096/Q8_0", Dtype::Q8_0),
    ("matvec/11008x4096/Q4_0", Dtype::Q4_0),
    ("matvec/11008x4096/Q4_K", Dtype::Q4_K),
    ("matvec/11008x4096/Q6_K", Dtype::Q6_K),
];
/// Bytes that are gone through before any is met again: beyond the caches of most devices.
const FAR: u64 = 256 << 20;
/// Seconds that a measurement lasts at least, so that waiting for its end does not count.
const LONG: f64 = 0.05;

/// Names of the rows of [`run`], without a suffix.
pub fn names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(name, _)| *name).chain([COPY, UPLOAD]).chain(TOKEN)
}

/// Measures what `names` choose; see [`super::run`].
///
/// # Errors
/// A product that is not the CPU's; what the device answers; what `emit` answers.
pub async fn run(place: &Place<WebGpu>, names: &[String], mut emit: impl FnMut(Row) -> Result<()>) -> Result<()> {
    let mut out = Out { place, names, emit: &mut emit };
    matvec(&mut out).await?;
    upload(&mut out).await?;
    token(&mut out).await
}

/// Waits until the device has done everything.
async fn settle(gpu: &WebGpu, x: &<WebGpu as Backend>::Tensor) -> Result<f32> {
    let width = gpu.shape(x).iter().product::<usize>();
    let flat = gpu.reshape(x, &[width])?;
    Ok(gpu.read(&gpu.narrow(&flat, 0, width - 1, 1)?).await?[0])
}

/// Seconds of one `pass`, by as many of them as last long enough.
async fn seconds_of(
    out: &Out<'_, WebGpu>,
    mut pass: impl FnMut() -> Result<<WebGpu as Backend>::Tensor>,
) -> Result<f64> {
    let gpu = &out.place.backend;
    settle(gpu, &pass()?).await?;
    let start = (out.place.clock)();
    settle(gpu, &pass()?).await?;
    let passes = (LONG / ((out.place.clock)() - start).max(1e-6)).ceil().clamp(1.0, 1000.0) as usize;
    let seconds = out
        .median(5, async || {
            for _ in 1..passes {
                pass()?;
            }
            settle(gpu, &pass()?).await.map(drop)
        })
        .await?;
    Ok(seconds / passes as f64)
}

/// GB/s of copying a buffer, read and written, and of the weights of products with one row as a share of it.
async fn matvec(out: &mut Out<'_, WebGpu>) -> Result<()> {
    if !out.wants(COPY) && !TYPES.iter().any(|(name, _)| out.wants(name)) {
        return Ok(());
    }
    let n = FAR as usize / 8;
    let x = out.place.backend.upload(&vec![1.0; n], &[n])?;
    let seconds = seconds_of(out, || out.place.backend.duplicate(&x)).await?;
    // Half of the bytes are read, half are written.
    let copied = FAR as f64 / seconds / 1e9;
    drop(x);
    if out.wants(COPY) {
        out.row(COPY, copied, "GB/s", &format!("read and written, {} MB each", FAR / 2_000_000))?;
    }
    let cpu = Candle::cpu();
    let [rows, columns] = SHAPE;
    let x: Vec<f32> = (0..columns).map(|i| (i as f32 * 0.37).sin()).collect();
    for (name, dtype) in TYPES {
        if !out.wants(name) {
            continue;
        }
        let gpu = &out.place.backend;
        let raw = made(&cpu, dtype)?;
        let bytes = weight_bytes(&[TensorInfo { name: String::new(), shape: raw.shape.clone(), dtype }]);
        let exact = dequantize(&raw)?;
        let expected = exact.chunks_exact(columns).map(|row| row.iter().zip(&x).map(|(a, b)| a * b).sum::<f32>());
        let x = gpu.upload(&x, &[1, columns])?;
        // Several of them, for one might stay in a cache.
        let copies = (0..FAR.div_ceil(bytes)).map(|_| gpu.upload_matrix(&raw)).collect::<Result<Vec<_>>>()?;
        let w = &copies[0];
        let found = gpu.read(&gpu.linear(&x, w, None)?).await?;
        let (error, size) = found
            .iter()
            .zip(expected)
            .fold((0.0, 0.0), |(error, size), (a, b)| (error + f64::from(a - b).powi(2), size + f64::from(b).powi(2)));
        if error.is_nan() || error > 5e-4 * size {
            return Err(Error::Backend(format!("{name}: expected the CPU's product but found an error of {error}")));
        }
        let pass = || {
            let mut y = gpu.linear(&x, w, None)?;
            for w in &copies[1..] {
                y = gpu.linear(&x, w, None)?;
            }
            Ok(y)
        };
        let rate = (copies.len() as u64 * bytes) as f64 / seconds_of(out, pass).await? / 1e9;
        let note = format!("of {copied:.1} GB/s; {rate:.1} GB/s, {:.1} MB of {rows} x {columns}", bytes as f64 / 1e6);
        out.row(name, 100.0 * rate / copied, "%", &note)?;
    }
    Ok(())
}

fn made(cpu: &Candle, dtype: Dtype) -> Result<RawTensor> {
    let of: fn(&str) -> Dtype = match dtype {
        Dtype::F16 => |_| Dtype::F16,
        Dtype::Q8_0 => |_| Dtype::Q8_0,
        Dtype::Q4_0 => |_| Dtype::Q4_0,
        Dtype::Q4_K => |_| Dtype::Q4_K,
        _ => |_| Dtype::Q6_K,
    };
    Random::new(cpu, of).raw("weights", SHAPE)
}

/// MB/s of weights from the host's memory to the device, repacked.
async fn upload(out: &mut Out<'_, WebGpu>) -> Result<()> {
    if !out.wants(UPLOAD) {
        return Ok(());
    }
    let gpu = &out.place.backend;
    let raw = made(&Candle::cpu(), Dtype::Q4_0)?;
    let x = gpu.upload(&[1.0; SHAPE[1]], &[1, SHAPE[1]])?;
    let seconds = out
        .median(5, async || {
            let w = gpu.upload_matrix(&raw)?;
            settle(gpu, &gpu.linear(&x, &w, None)?).await.map(drop)
        })
        .await?;
    let megabytes = raw.bytes.len() as f64 / 1e6;
    out.row(UPLOAD, megabytes / seconds, "MB/s", &format!("{megabytes:.0} MB, repacked, with one product"))
}

/// Kernels started for a token, and how long the host takes to record and send them.
async fn token(out: &mut Out<'_, WebGpu>) -> Result<()> {
    if !TOKEN.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let (gpu, config) = (&out.place.backend, small_config());
    let (llama, _) = random(gpu, &config, |_| Dtype::Q4_0).await?;
    let mut cache = KvCache::new(gpu, &config, 1, 64)?;
    let mask = gpu.upload(&vec![0.0; config.vocab_size], &[config.vocab_size])?;
    let mut recorded = Vec::new();
    let mut dispatches = 0;
    for id in 0..16 {
        let (before, start) = (gpu.counters().dispatches, (out.place.clock)());
        let x = gpu.reshape(&llama.embed(gpu, &[id])?, &[1, 1, config.hidden_size])?;
        let hidden = llama.forward(gpu, &x, Some(&mut cache))?;
        let logits = llama.logits(gpu, &gpu.reshape(&hidden, &[1, config.hidden_size])?)?;
        let Some(chosen) = gpu.choose(&logits, &mask)? else { return Ok(()) };
        recorded.push((out.place.clock)() - start);
        dispatches = gpu.counters().dispatches - before;
        chosen.answer.await?;
        super::finite(&gpu.read(&logits).await?)?;
    }
    recorded.sort_by(f64::total_cmp);
    let note = format!("{} layers, embedding, head and choice, sent", config.num_hidden_layers);
    if out.wants(TOKEN[0]) {
        out.row(TOKEN[0], dispatches as f64, "a token", &note)?;
    }
    if out.wants(TOKEN[1]) {
        out.row(TOKEN[1], 1e3 * recorded[recorded.len() / 2], "ms", &note)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_shape_are_of_every_measured_type() {
        for (name, dtype) in TYPES {
            let raw = made(&Candle::cpu(), dtype).unwrap();
            assert_eq!((raw.dtype, &raw.shape[..]), (dtype, &SHAPE[..]), "{name}");
        }
    }
}
