//! Every operation of a GPU against the CPU's: run natively by this crate's tests, and in a browser by the page that
//! `cargo xtask test` builds for it.

macro_rules! ensure {
    ($condition:expr) => { ensure!($condition, stringify!($condition)) };
    ($condition:expr, $($text:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(crate::error::Error::Backend(format!($($text)+)));
        }
    };
}

mod fused;
mod odd;
mod operations;
mod products;
mod steps;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Cache, Tensor, WebGpu, memory::SENTINEL, read::read};
use crate::{
    backend::{Backend, Candle},
    error::{Context, Error, Result},
};

macro_rules! groups {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// Names of the groups of operations.
        pub const GROUPS: &[&str] = &[$(stringify!($name)),*];

        /// Compares one group of operations on a device with the CPU's: odd sizes, what is not finite, what must be
        /// refused. From now on the device poisons its outputs and watches what lies behind them.
        ///
        /// # Errors
        /// [`Error::Backend`] with the first operation that is wrong; [`Error::Config`] for a name that is no group's.
        pub async fn check(gpu: &WebGpu, name: &str) -> Result<()> {
            gpu.gpu.memory.guard.set(256);
            let result = match name {
                $(stringify!($name) => $module::$name(gpu).await,)*
                _ => Err(Error::Config(format!("expected one of {GROUPS:?} but found {name}"))),
            };
            result.at(name)
        }
    };
}

groups! {
    operations::shapes,
    operations::elements,
    operations::norms,
    operations::rotations,
    operations::attention_at_hand,
    operations::attention_over_a_cache,
    products::products_of_every_type,
    products::rows_of_every_type,
    products::infinities_and_what_is_no_number_come_through,
    odd::elements_that_are_not_finite,
    odd::rows_that_are_not_finite,
    odd::attention_over_what_is_not_finite,
    odd::quantised_products_of_what_is_not_finite,
    fused::products_with_something_after,
    fused::gated_products,
    fused::self_attention_over_a_cache,
    fused::many_operations_in_one_submission,
    fused::rows_that_were_chosen_there,
    fused::the_largest_of_a_row,
    fused::the_first_of_many,
    steps::steps_that_are_replayed,
}

#[cfg(test)]
pub(super) use {
    fused::{MIXTURES, OF_EACH_PACKING},
    products::matrix,
};

/// Values in -2..2 and their shape.
type Values = (Vec<f32>, Vec<usize>);

fn random(seed: u64, shape: &[usize]) -> Values {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    ((0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect(), shape.to_vec())
}

/// Values of a tensor; what lies behind them must be untouched.
pub(super) async fn values(gpu: &WebGpu, x: &Tensor) -> Result<Vec<f32>> {
    let words: Vec<u32> = read(&gpu.gpu, &x.data, (x.data.buffer.size() / 4) as usize).await?;
    let (inside, behind) = words.split_at(x.elements());
    ensure!(
        behind.len() >= 64 && behind.iter().all(|&w| w == SENTINEL),
        "expected nothing behind the end of {:?} but found something written",
        x.shape
    );
    Ok(inside.iter().map(|&w| f32::from_bits(w)).collect())
}

/// What lies behind a cache's keys and values must be untouched.
async fn untouched(gpu: &WebGpu, cache: &Cache) -> Result<()> {
    let block = cache.block();
    let words: Vec<u32> = read(&gpu.gpu, block, (block.buffer.size() / 4) as usize).await?;
    let behind = &words[words.len() - 64..];
    ensure!(
        behind.iter().all(|&word| word == SENTINEL),
        "expected nothing behind the end of a cache but found something written"
    );
    Ok(())
}

/// Error relative to the values' own size; what is not finite must agree.
fn nmse(found: &[f32], expected: &[f32]) -> Result<f64> {
    ensure!(found.len() == expected.len(), "expected {} values but found {}", expected.len(), found.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        if a.is_finite() && b.is_finite() {
            error += f64::from(a - b).powi(2);
            size += f64::from(b).powi(2);
        } else {
            ensure!(a == b || (a.is_nan() && b.is_nan()), "expected {b} but found {a} at {i}");
        }
    }
    Ok(error / (size + 1e-12))
}

/// Runs an operation on both devices and compares.
async fn compare(
    gpu: &WebGpu,
    name: &str,
    bound: f64,
    inputs: &[Values],
    ours: impl Fn(&WebGpu, &[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&Candle, &[candle_core::Tensor]) -> Result<candle_core::Tensor>,
) -> Result<()> {
    let cpu = Candle::cpu();
    let there: Vec<_> = inputs.iter().map(|(v, s)| gpu.upload(v, s)).collect::<Result<_>>()?;
    let here: Vec<_> = inputs.iter().map(|(v, s)| cpu.upload(v, s)).collect::<Result<_>>()?;
    let (found, expected) = (ours(gpu, &there).at(name)?, theirs(&cpu, &here).at(name)?);
    let (shape, right) = (gpu.shape(&found), cpu.shape(&expected));
    ensure!(shape == right, "{name}: expected the shape {right:?} but found {shape:?}");
    let error = nmse(&values(gpu, &found).await.at(name)?, &cpu.read(&expected).await?).at(name)?;
    ensure!(error <= bound, "{name} {shape:?}: expected an error of at most {bound:e} but found {error:e}");
    Ok(())
}
