//! What is asked of a GPU alone: how near its kernels come to the speed of its memory, and what a token costs the host.

use std::cell::RefCell;

use super::{
    Out, Place, Row,
    llama::{FORCED, forced, random, small_config},
    random::random_matrix,
    step,
};
use crate::{
    backend::{
        Backend, Norm, RopeLayout, SelfAttention, WebGpu,
        webgpu::{Options, weight_bytes},
    },
    error::{Error, Result},
    llama::KvCache,
    weights::{Dtype, RawTensor, TensorInfo, quant::dequantize},
};

const BANDWIDTH: &str = "bandwidth";
const UPLOAD: &str = "upload/Q4_0";
const TOKEN: [&str; 2] = ["dispatches/110M/Q4_0", "encode-token/110M/Q4_0"];
/// The way up of LLaMA-2-7B's MLPs.
const WIDE: [usize; 2] = [11_008, 4096];
/// Its queries, keys, values and outputs.
const SQUARE: [usize; 2] = [4096, 4096];
/// Every packing that weights have on a device, and the types that most files have in the smaller shape, too.
const MATVECS: [Matvec; 15] = [
    Matvec::new("matvec/11008x4096/F32", WIDE, Dtype::F32),
    Matvec::new("matvec/11008x4096/F16", WIDE, Dtype::F16),
    Matvec::new("matvec/11008x4096/Q8_0", WIDE, Dtype::Q8_0),
    Matvec::new("matvec/11008x4096/Q4_0", WIDE, Dtype::Q4_0),
    Matvec::new("matvec/11008x4096/Q4_K", WIDE, Dtype::Q4_K),
    Matvec::new("matvec/11008x4096/Q5_0", WIDE, Dtype::Q5_0),
    Matvec::new("matvec/11008x4096/Q5_K", WIDE, Dtype::Q5_K),
    Matvec::new("matvec/11008x4096/Q6_K", WIDE, Dtype::Q6_K),
    Matvec::new("matvec/4096x4096/F16", SQUARE, Dtype::F16),
    Matvec::new("matvec/4096x4096/Q8_0", SQUARE, Dtype::Q8_0),
    Matvec::new("matvec/4096x4096/Q4_0", SQUARE, Dtype::Q4_0),
    Matvec::new("matvec/4096x4096/Q4_K", SQUARE, Dtype::Q4_K),
    Matvec::plain("matvec/11008x4096/F16/plain", WIDE, Dtype::F16),
    Matvec::plain("matvec/11008x4096/Q8_0/plain", WIDE, Dtype::Q8_0),
    Matvec::plain("matvec/11008x4096/Q4_0/plain", WIDE, Dtype::Q4_0),
];

/// The product of a matrix with one row.
struct Matvec {
    name: &'static str,
    shape: [usize; 2],
    dtype: Dtype,
    /// On the same device as if it had neither 16-bit floats nor subgroups.
    plain: bool,
}

impl Matvec {
    const fn new(name: &'static str, shape: [usize; 2], dtype: Dtype) -> Self {
        Matvec { name, shape, dtype, plain: false }
    }

    const fn plain(name: &'static str, shape: [usize; 2], dtype: Dtype) -> Self {
        Matvec { name, shape, dtype, plain: true }
    }
}

/// Products that share their input, with one row of it: of a SwiGLU's gate and way up, and of queries, keys and values, here with
/// attention to the row itself.
const GATED: &str = "matvec_gated/11008x4096/Q4_0";
const JOINED: &str = "matvec_joined/4096x4096/Q4_0";

/// Products with many rows of x, as in prefill: kernels of their own.
const MATMULS: [(&str, Dtype); 3] = [
    ("matmul/4096x4096/F16", Dtype::F16),
    ("matmul/4096x4096/Q8_0", Dtype::Q8_0),
    ("matmul/4096x4096/Q4_0", Dtype::Q4_0),
];
/// Their rows of x.
const MANY: usize = 128;

/// Elements of a head of LLaMA-2.
const HEAD: usize = 128;
/// Bytes that are gone through before any is met again: beyond the caches of most devices.
const FAR: u64 = 256 << 20;
/// Seconds that a measurement lasts at least, so that waiting for its end does not count.
const LONG: f64 = 0.05;

/// Names of the rows of [`run`], without a suffix.
pub fn names() -> impl Iterator<Item = &'static str> {
    MATVECS
        .iter()
        .map(|of| of.name)
        .chain(MATMULS.iter().map(|of| of.0))
        .chain([GATED, JOINED, BANDWIDTH, UPLOAD, FORCED])
        .chain(TOKEN)
        .chain(step::NAMES)
}

/// Measures what `names` choose; see [`super::run`].
///
/// # Errors
/// A product that is not the CPU's; what the device answers; what `emit` answers.
pub async fn run(place: &Place<WebGpu>, names: &[String], mut emit: impl FnMut(Row) -> Result<()>) -> Result<()> {
    let mut out = Out { place, names, emit: &mut emit };
    matvec(&mut out).await?;
    matmul(&mut out).await?;
    upload(&mut out).await?;
    token(&mut out).await?;
    step::measure(&mut out).await?;
    forced(&mut out).await
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
    gpu: &WebGpu,
    mut pass: impl FnMut() -> Result<<WebGpu as Backend>::Tensor>,
) -> Result<f64> {
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

/// The same of a `pass` that is recorded, as steps of decoding are, and asked for again: what it takes the host to describe
/// it does not count. It goes by `x`.
async fn seconds_of_recorded(
    out: &Out<'_, WebGpu>,
    gpu: &WebGpu,
    x: &<WebGpu as Backend>::Tensor,
    mut pass: impl FnMut() -> Result<<WebGpu as Backend>::Tensor>,
) -> Result<f64> {
    let (y, recording) = gpu.record(x, &mut pass)?;
    seconds_of(out, gpu, || match &recording {
        Some(recording) if gpu.replay(recording, x, 0)? => Ok(y.clone()),
        _ => pass(),
    })
    .await
}

/// The last of what several operations give. All of it is kept until then, so that each writes a buffer of its own and none waits
/// for the one before: what a kernel moves is measured, not what it costs a device to wait.
fn last<T>(all: impl Iterator<Item = Result<T>>) -> Result<T> {
    let mut all = all.collect::<Result<Vec<T>>>()?;
    all.pop().ok_or_else(|| Error::Backend("expected an operation but found none".into()))
}

/// GB/s of the weights of products with one row, as a share of what the device was seen to move.
async fn matvec(out: &mut Out<'_, WebGpu>) -> Result<()> {
    if ![BANDWIDTH, GATED, JOINED].iter().any(|name| out.wants(name)) && !MATVECS.iter().any(|of| out.wants(of.name)) {
        return Ok(());
    }
    let bandwidth = bandwidth(out).await?;
    let plain = match MATVECS.iter().any(|of| of.plain && out.wants(of.name)) {
        true => Some(WebGpu::open(Options { shader_f16: false, subgroups: false, ..Options::default() }).await?),
        false => None,
    };
    for of in &MATVECS {
        if !out.wants(of.name) {
            continue;
        }
        let gpu = plain.as_ref().filter(|_| of.plain).unwrap_or(&out.place.backend);
        let (rate, bytes) = rate_of_product(out, gpu, of).await?;
        let [rows, columns] = of.shape;
        let note =
            format!("of {bandwidth:.1} GB/s; {rate:.1} GB/s, {:.1} MB of {rows} x {columns}", bytes as f64 / 1e6);
        out.row(of.name, 100.0 * rate / bandwidth, "%", &note)?;
    }
    shared_input(out, bandwidth).await
}

/// GB/s of a product's weights, and the bytes of one matrix.
async fn rate_of_product(out: &Out<'_, WebGpu>, gpu: &WebGpu, of: &Matvec) -> Result<(f64, u64)> {
    let raw = random_matrix(of.dtype, of.shape)?;
    let bytes = weight_bytes(&[TensorInfo { name: String::new(), shape: raw.shape.clone(), dtype: raw.dtype }]);
    // Several of them, for one might stay in a cache.
    let copies = (0..FAR.div_ceil(bytes)).map(|_| gpu.upload_matrix(&raw)).collect::<Result<Vec<_>>>()?;
    let x = checked(gpu, of.name, &copies[0], &raw, 1).await?;
    let pass = || last(copies.iter().map(|w| gpu.linear(&x, w, None)));
    let seconds = seconds_of_recorded(out, gpu, &x, pass).await?;
    Ok(((copies.len() as u64 * bytes) as f64 / seconds / 1e9, bytes))
}

/// GB/s that the device was seen to move at the most: by the driver's own copying of a buffer, by a kernel that adds two, or by
/// the product with F32 weights, which reads and does little else. On some GPUs one of them is far from what another does.
async fn bandwidth(out: &mut Out<'_, WebGpu>) -> Result<f64> {
    let (gpu, n) = (&out.place.backend, FAR as usize / 8);
    let [x, y] = [1.0, 2.0].map(|value| gpu.upload(&vec![value; n], &[n]));
    let (x, y) = (x?, y?);
    // Several in one submission, which takes longer than a copy does.
    let times = if out.place.short { 1 } else { 16 };
    // Half of the bytes are read, half are written.
    let by_copy = FAR as f64 * times as f64 / seconds_of(out, gpu, || gpu.duplicate(&x, times)).await? / 1e9;
    let sums = || {
        let mut sum = gpu.add(&x, &y)?;
        for _ in 1..times {
            sum = gpu.add(&x, &y)?;
        }
        Ok(sum)
    };
    let by_sum = 1.5 * FAR as f64 * times as f64 / seconds_of(out, gpu, sums).await? / 1e9;
    let (by_product, _) = rate_of_product(out, gpu, &Matvec::new(BANDWIDTH, WIDE, Dtype::F32)).await?;
    let most = by_copy.max(by_sum).max(by_product);
    if out.wants(BANDWIDTH) {
        let note = format!(
            "the driver's copying {by_copy:.0}, a kernel's sums {by_sum:.0}, products with F32 weights {by_product:.0}; {} MB \
             a buffer",
            FAR / 2_000_000
        );
        out.row(BANDWIDTH, most, "GB/s", &note)?;
    }
    Ok(most)
}

/// The same of products that share their input, as a share of `bandwidth` GB/s.
async fn shared_input(out: &mut Out<'_, WebGpu>, bandwidth: f64) -> Result<()> {
    for (name, shape, count) in [(GATED, WIDE, 2), (JOINED, SQUARE, 3)] {
        if !out.wants(name) {
            continue;
        }
        let ([rows, columns], gpu) = (shape, &out.place.backend);
        let raw = random_matrix(Dtype::Q4_0, shape)?;
        let info = TensorInfo { name: String::new(), shape: raw.shape.clone(), dtype: raw.dtype };
        let bytes = count as u64 * weight_bytes(&[info]);
        let of_one = |_| (0..count).map(|_| gpu.upload_matrix(&raw)).collect::<Result<Vec<_>>>();
        let copies = (0..FAR.div_ceil(bytes)).map(of_one).collect::<Result<Vec<_>>>()?;
        let x = checked(gpu, name, &copies[0][0], &raw, 1).await?;
        let weight = gpu.upload(&vec![1.0; columns], &[columns])?;
        let norm = Norm { weight: &weight, eps: 1e-5 };
        let normed = gpu.rms_norm(&x, norm.weight, norm.eps)?;
        let product = gpu.read(&gpu.linear(&normed, &copies[0][0], None)?).await?;
        // Equal matrices: the gate's product is the way up's, queries are keys and values.
        let silu = |v: f32| v * v / (1.0 + (-v).exp());
        let expected: Vec<f32> = if name == GATED { product.iter().map(|&v| silu(v)).collect() } else { product };
        let (x3, heads) = (gpu.reshape(&x, &[1, 1, columns])?, columns / HEAD);
        let rope = gpu.upload(&[[1.0; HEAD / 2], [0.0; HEAD / 2]].concat(), &[2, 1, HEAD / 2])?;
        // Each has one of its own, so that none waits for another.
        let caches =
            copies.iter().map(|_| gpu.cache(1, heads, 1, HEAD).map(RefCell::new)).collect::<Result<Vec<_>>>()?;
        let one = |w: &[<WebGpu as Backend>::Matrix], cache: &RefCell<<WebGpu as Backend>::Cache>| match w {
            [gate, up] => gpu.linear_silu_mul(&x, norm, gate, up),
            [q, k, v] => {
                let (layout, groups, head_dim) = (RopeLayout::Half, heads, HEAD);
                let w = SelfAttention { norm, q, k, v, rope: &rope, layout, heads, groups, head_dim };
                gpu.self_attention(Some(&mut *cache.borrow_mut()), &x3, &w, 0)
            }
            _ => Err(Error::Backend(format!("{name}: expected two matrices or three but found {}", w.len()))),
        };
        close(name, &gpu.read(&one(&copies[0], &caches[0])?).await?, expected.into_iter())?;
        let pass = || last(copies.iter().zip(&caches).map(|(w, cache)| one(w, cache)));
        let rate = (copies.len() as u64 * bytes) as f64 / seconds_of_recorded(out, gpu, &x, pass).await? / 1e9;
        let megabytes = bytes as f64 / 1e6;
        let note =
            format!("of {bandwidth:.1} GB/s; {rate:.1} GB/s, {megabytes:.1} MB of {count} times {rows} x {columns}");
        out.row(name, 100.0 * rate / bandwidth, "%", &note)?;
    }
    Ok(())
}

/// Operations of products with many rows.
async fn matmul(out: &mut Out<'_, WebGpu>) -> Result<()> {
    for (name, dtype) in MATMULS {
        if !out.wants(name) {
            continue;
        }
        let gpu = &out.place.backend;
        let raw = random_matrix(dtype, SQUARE)?;
        let w = gpu.upload_matrix(&raw)?;
        let x = checked(gpu, name, &w, &raw, MANY).await?;
        let seconds = seconds_of(out, gpu, || gpu.linear(&x, &w, None)).await?;
        let [rows, columns] = SQUARE;
        let operations = 2.0 * (MANY * rows * columns) as f64;
        out.row(name, operations / seconds / 1e9, "GFLOP/s", &format!("{MANY} rows with {rows} x {columns}"))?;
    }
    Ok(())
}

/// `n` rows whose product with `w`, which is `raw`, is the CPU's.
async fn checked(
    gpu: &WebGpu,
    name: &str,
    w: &<WebGpu as Backend>::Matrix,
    raw: &RawTensor,
    n: usize,
) -> Result<<WebGpu as Backend>::Tensor> {
    let columns = raw.shape[1];
    let x: Vec<f32> = (0..n * columns).map(|i| (i as f32 * 0.37).sin()).collect();
    let exact = dequantize(raw)?;
    let product = |x: &[f32], w: &[f32]| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
    let on_device = gpu.upload(&x, &[n, columns])?;
    let found = gpu.read(&gpu.linear(&on_device, w, None)?).await?;
    let expected = x.chunks_exact(columns).flat_map(|x| exact.chunks_exact(columns).map(move |w| product(x, w)));
    close(name, &found, expected)?;
    Ok(on_device)
}

/// # Errors
/// [`Error::Backend`] where `found` is not about `expected`.
fn close(name: &str, found: &[f32], expected: impl Iterator<Item = f32>) -> Result<()> {
    let (error, size) = found
        .iter()
        .zip(expected)
        .fold((0.0, 0.0), |(error, size), (a, b)| (error + f64::from(a - b).powi(2), size + f64::from(b).powi(2)));
    if error.is_nan() || error > 5e-4 * size {
        return Err(Error::Backend(format!("{name}: expected the CPU's product but found an error of {error}")));
    }
    Ok(())
}

/// MB/s of weights from the host's memory to the device, repacked.
async fn upload(out: &mut Out<'_, WebGpu>) -> Result<()> {
    if !out.wants(UPLOAD) {
        return Ok(());
    }
    let gpu = &out.place.backend;
    let raw = random_matrix(Dtype::Q4_0, WIDE)?;
    let x = gpu.upload(&[1.0; WIDE[1]], &[1, WIDE[1]])?;
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
    let first = gpu.upload(&vec![1.0; config.vocab_size], &[1, config.vocab_size])?;
    let Some(mut chosen) = gpu.choose(&first, &mask, None)? else { return Ok(()) };
    let (mut replayed, mut dispatches) = (Vec::new(), 0);
    for _ in 0..17 {
        let (before, start) = (gpu.counters(), (out.place.clock)());
        let logits = llama.decode(gpu, &chosen.ids, &mut cache)?;
        let Some(next) = gpu.choose(&logits, &mask, Some(&chosen.ids))? else { return Ok(()) };
        let seconds = (out.place.clock)() - start;
        let after = gpu.counters();
        if after.replays > before.replays {
            replayed.push(seconds);
        }
        dispatches = after.dispatches - before.dispatches;
        chosen = next;
        super::finite(&gpu.read(&logits).await?)?;
    }
    if replayed.len() < 16 {
        return Err(Error::Backend(format!(
            "{}: expected 16 steps to be replayed but found {}",
            TOKEN[1],
            replayed.len()
        )));
    }
    replayed.sort_by(f64::total_cmp);
    let note = format!("{} layers, embedding, head and choice, replayed", config.num_hidden_layers);
    if out.wants(TOKEN[0]) {
        out.row(TOKEN[0], dispatches as f64, "a token", &note)?;
    }
    if out.wants(TOKEN[1]) {
        out.row(TOKEN[1], 1e3 * replayed[replayed.len() / 2], "ms", &note)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_measured_in_every_packing() {
        let raws: Vec<RawTensor> =
            MATVECS.iter().map(|of| random_matrix(of.dtype, [2, of.shape[1]]).unwrap()).collect();
        let bytes = |raw: &RawTensor| {
            weight_bytes(&[TensorInfo { name: String::new(), shape: raw.shape.clone(), dtype: raw.dtype }])
        };
        // F32, F16, Q8, Q4 without and with minima, Q5 and Q6 differ in what an element takes, but for the two of Q4.
        let sizes: std::collections::BTreeSet<u64> = raws.iter().map(bytes).collect();
        assert_eq!(sizes.len(), 7, "{sizes:?}");
    }
}
