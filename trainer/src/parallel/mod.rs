//! Data-parallel training: one process a GPU, each with its workers' shares of every batch.
//!
//! Processes are to a batch what workers are: N processes of W workers deal it out, draw from the same streams of random
//! numbers and add up in the same order as one process of N W workers, so they end with the same bytes. Each of them
//! steps its own copy of the weights with the same sum of gradients; that the copies stay equal is checked by their hash.

mod embedded;
mod link;
#[cfg(feature = "nccl")]
mod nccl;
mod processes;
mod start;
mod wire;

use std::collections::BTreeMap;

pub use embedded::Embedded;
pub use processes::Processes;
pub use start::run;

use candle_core::{Device, Tensor};
use rscapret::{Error, Result};
use sha2::{Digest, Sha256};

use crate::{
    optim::Gradients,
    stage,
    vars::{Vars, values},
};

/// Gradients as they travel: values by the names of their variables.
pub type Host = BTreeMap<String, Vec<f32>>;

/// The processes that share a batch, seen from one of them. Every method that exchanges something is called by all of them
/// in the same order, and ends with an error where one is gone.
pub trait Group {
    /// Which of them this is, from 0. The first alone writes files, shows progress and validates.
    fn rank(&self) -> usize;

    /// How many they are, N.
    fn world(&self) -> usize;

    /// The bytes of each, by rank.
    ///
    /// # Errors
    /// A process that failed or is gone, named.
    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// The bytes of the first.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    fn broadcast(&self, own: &[u8]) -> Result<Vec<u8>>;

    /// The sum of the gradients of all workers of all processes, these being the own workers'.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    fn all_reduce_sum(&self, parts: Vec<Host>) -> Result<Host>;

    /// Looks, without waiting, whether the others are still there.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    fn check(&self) -> Result<()>;

    /// Waits for all.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    fn barrier(&self) -> Result<()> {
        self.all_gather(Vec::new()).map(drop)
    }
}

/// One process that shares with nobody.
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own])
    }

    fn broadcast(&self, own: &[u8]) -> Result<Vec<u8>> {
        Ok(own.to_vec())
    }

    fn all_reduce_sum(&self, parts: Vec<Host>) -> Result<Host> {
        Ok(sum(parts))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// `--gpus`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct GpusArgs {
    /// Processes that share each batch, one a GPU, from that of --device on; without CUDA they share the processor
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub gpus: u16,
}

/// Which GPU is this process's.
pub fn ordinal(group: &dyn Group) -> usize {
    group.rank()
}

/// The group as it is best where the tensors lie: gradients of CUDA devices are added by NCCL when it is built in (feature
/// `nccl`), in all other cases by the processes themselves.
///
/// # Errors
/// What NCCL answers.
pub fn on<'g>(group: &'g dyn Group, device: &Device) -> Result<Box<dyn Group + 'g>> {
    #[cfg(feature = "nccl")]
    if group.world() > 1
        && let Device::Cuda(cuda) = device
    {
        return Ok(Box::new(nccl::Nccl::new(group, cuda)?));
    }
    let _ = device;
    Ok(Box::new(group))
}

impl<G: Group + ?Sized> Group for &G {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn world(&self) -> usize {
        (**self).world()
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        (**self).all_gather(own)
    }

    fn broadcast(&self, own: &[u8]) -> Result<Vec<u8>> {
        (**self).broadcast(own)
    }

    fn all_reduce_sum(&self, parts: Vec<Host>) -> Result<Host> {
        (**self).all_reduce_sum(parts)
    }

    fn check(&self) -> Result<()> {
        (**self).check()
    }
}

/// What all need and the first makes, such as a download that the others then find.
///
/// # Errors
/// What `make` answers; as [`Group::all_gather`].
pub fn first_then_others<T>(group: &dyn Group, make: impl FnOnce() -> Result<T>) -> Result<T> {
    if group.rank() == 0 {
        let made = make()?;
        group.barrier()?;
        return Ok(made);
    }
    group.barrier()?;
    make()
}

/// Vectors of all processes, by rank.
///
/// # Errors
/// As [`Group::all_gather`].
pub fn gather_vectors(group: &dyn Group, own: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
    if group.world() == 1 {
        return Ok(own);
    }
    let all = group.all_gather(wire::from_vectors(&own))?;
    let all: Vec<Vec<Vec<f32>>> = all.iter().map(|bytes| wire::to_vectors(bytes)).collect::<Result<_>>()?;
    Ok(all.into_iter().flatten().collect())
}

/// The sum of the gradients of all workers of all processes, `parts` being the own workers'. One process alone leaves them
/// where they are.
///
/// # Errors
/// As [`Group::all_reduce_sum`]; gradients of variables that are not there.
pub fn reduce(group: &dyn Group, vars: &Vars, parts: Vec<Gradients>) -> Result<Gradients> {
    if group.world() == 1 {
        return stage::sum(parts);
    }
    let host = |part: Gradients| part.into_iter().map(|(name, gradient)| Ok((name, values(&gradient)?))).collect();
    let total = group.all_reduce_sum(parts.into_iter().map(host).collect::<Result<_>>()?)?;
    let back = |(name, values): (String, Vec<f32>)| {
        let var = vars.get(&name).ok_or_else(|| Error::MissingTensor(name.clone()))?;
        Ok((name, Tensor::from_vec(values, var.shape(), var.device())?))
    };
    total.into_iter().map(back).collect()
}

/// Adds gradients in their order.
fn sum(parts: impl IntoIterator<Item = Host>) -> Host {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (name, gradient) in part {
            match total.get_mut(&name) {
                Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
                None => {
                    total.insert(name, gradient);
                }
            }
        }
    }
    total
}

/// Sees that all processes have the same weights after `step` steps.
///
/// # Errors
/// [`Error::Backend`] where they differ; as [`Group::all_gather`].
pub fn same_weights(group: &dyn Group, vars: &Vars, step: u64) -> Result<()> {
    if group.world() == 1 {
        return Ok(());
    }
    let mut hash = Sha256::new_with_prefix(step.to_le_bytes());
    for (name, var) in vars {
        hash.update(name);
        hash.update(wire::from_floats(&values(var)?));
    }
    let all = group.all_gather(hash.finalize().to_vec())?;
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Backend(format!(
            "expected the same weights in all processes after {step} steps but found others in process {} of {}\n\
             go on from the last checkpoint with --resume; if it comes again, look for a GPU with faulty memory",
            rank + 1,
            group.world()
        ))),
    }
}
