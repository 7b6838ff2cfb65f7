//! Who computes a step: threads of this process, and of others.

use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rscapret::{Error, Result};

use crate::{
    ahead::cores,
    parallel::{Alone, Group},
};

/// Threads that each work on a share of the batch, in one process or in as many each of a group. Shares have a fixed order,
/// so their number, but never their speed, shows in the result.
pub struct Workers<'g> {
    pools: Vec<ThreadPool>,
    group: &'g dyn Group,
}

impl Workers<'static> {
    /// Those of one process alone; see [`Workers::in_group`].
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(count: usize, device: &Device) -> Result<Self> {
        Workers::in_group(count, device, &Alone)
    }
}

impl<'g> Workers<'g> {
    /// On the CPU `count` workers of one thread each, here and in each other process of the group. On a GPU one, for it is
    /// one stream of work; its threads, as many as there are cores, read the images.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn in_group(count: usize, device: &Device, group: &'g dyn Group) -> Result<Self> {
        let (count, threads) = if device.is_cpu() { (count.max(1), 1) } else { (1, cores()) };
        Ok(Workers { pools: (0..count).map(|_| pool(threads)).collect::<Result<_>>()?, group })
    }

    /// The processes that they belong to.
    pub fn group(&self) -> &'g dyn Group {
        self.group
    }

    /// Which of all they are.
    pub fn places(&self) -> Places {
        let here = self.pools.len();
        Places { here, first: here * self.group.rank(), count: here * self.group.world() }
    }

    /// How many there are in all processes.
    pub fn count(&self) -> usize {
        self.places().count
    }

    /// Which of all is the first one here.
    pub fn first(&self) -> usize {
        self.places().first
    }

    /// As [`Places::own`].
    pub fn own<T>(&self, shares: impl IntoIterator<Item = T>) -> Vec<T> {
        self.places().own(shares)
    }

    /// As [`Places::deal`].
    pub fn deal<T: Clone>(&self, batch: &[T]) -> Vec<Vec<T>> {
        self.places().deal(batch)
    }

    /// Runs `f` on every share, one worker here each; results in the shares' order.
    ///
    /// # Errors
    /// The first share's that failed.
    pub fn run<T: Send, R: Send>(&self, shares: Vec<T>, f: impl Fn(usize, T) -> Result<R> + Sync) -> Result<Vec<R>> {
        let f = &f;
        std::thread::scope(|scope| {
            let handles: Vec<_> = shares
                .into_iter()
                .enumerate()
                .map(|(i, share)| {
                    let pool = &self.pools[i % self.pools.len()];
                    scope.spawn(move || pool.install(|| f(i, share)))
                })
                .collect();
            handles
                .into_iter()
                .map(|handle| {
                    handle.join().unwrap_or_else(|_| {
                        Err(Error::Backend(
                            "expected every worker to finish but found one that panicked, as it says above".into(),
                        ))
                    })
                })
                .collect()
        })
    }
}

/// Which of all processes' workers those of one process are: enough to know who gets what of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    here: usize,
    first: usize,
    count: usize,
}

impl Places {
    /// Of the shares of all workers, those of the ones here.
    pub fn own<T>(&self, shares: impl IntoIterator<Item = T>) -> Vec<T> {
        shares.into_iter().skip(self.first).take(self.here).collect()
    }

    /// A batch's items, dealt out by turns to all workers.
    pub fn deal<T: Clone>(&self, batch: &[T]) -> Vec<Vec<T>> {
        (0..self.count).map(|at| batch.iter().skip(at).step_by(self.count).cloned().collect()).collect()
    }
}

/// So many threads.
///
/// # Errors
/// Threads that cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::Backend(e.to_string()))
}
