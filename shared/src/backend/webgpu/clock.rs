//! How long each kernel takes by the device's own clock: for measurements alone.

use std::cell::RefCell;

use super::{device::Gpu, read::read};
use crate::error::Result;

/// Times that are kept at once.
const MOST: u32 = 1024;

/// A device's clock, where it has one that can be looked at between kernels.
pub(super) struct Clock {
    queries: Option<wgpu::QuerySet>,
    /// While somebody measures: what ended at each time, nothing at the beginning of a pass.
    ended: RefCell<Option<Vec<&'static str>>>,
}

impl Clock {
    /// What it needs of the device.
    pub const FEATURES: wgpu::Features =
        wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

    pub fn new(device: &wgpu::Device) -> Self {
        let description =
            wgpu::QuerySetDescriptor { label: Some("clock"), ty: wgpu::QueryType::Timestamp, count: MOST };
        let able = device.features().contains(Clock::FEATURES);
        Clock { queries: able.then(|| device.create_query_set(&description)), ended: RefCell::default() }
    }

    /// Notes when `kernel` ended, if somebody measures.
    pub fn look(&self, pass: &mut wgpu::ComputePass<'_>, kernel: &'static str) {
        if let (Some(queries), Some(ended)) = (&self.queries, &mut *self.ended.borrow_mut())
            && ended.len() < MOST as usize
        {
            pass.write_timestamp(queries, ended.len() as u32);
            ended.push(kernel);
        }
    }
}

impl Gpu {
    /// What `ask` answers, and the name and microseconds of each kernel that it asks for, in order; none of them where the
    /// device has no such clock.
    pub async fn timed<T>(&self, ask: impl FnOnce() -> Result<T>) -> Result<(T, Vec<(&'static str, f64)>)> {
        self.flush(|_| {});
        self.clock.ended.replace(Some(Vec::new()));
        let answer = ask();
        self.flush(|_| {});
        let (answer, ended) = (answer, self.clock.ended.take().unwrap_or_default());
        let answer = answer?;
        let Some(queries) = self.clock.queries.as_ref().filter(|_| !ended.is_empty()) else {
            return Ok((answer, Vec::new()));
        };
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let block = self.memory.used_as(self, usage, 8 * ended.len() as u64, "times")?;
        self.flush(|encoder| encoder.resolve_query_set(queries, 0..ended.len() as u32, &block.buffer, 0));
        let ticks: Vec<u64> = read(self, &block, ended.len()).await?;
        let period = f64::from(self.queue.get_timestamp_period()) / 1e3;
        let took = |two: &[u64]| two[1].saturating_sub(two[0]) as f64 * period;
        let kernels = ticks.windows(2).map(took).zip(&ended[1..]).filter(|(_, kernel)| !kernel.is_empty());
        Ok((answer, kernels.map(|(time, kernel)| (*kernel, time)).collect()))
    }
}
