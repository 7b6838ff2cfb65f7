//! From the device to the host.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use super::{
    device::{Gpu, one_line},
    memory::Block,
};
use crate::error::{Error, Result};

/// The first words of a block, once everything before is done.
pub(super) async fn read<T: bytemuck::Pod>(gpu: &Gpu, block: &Block, words: usize) -> Result<Vec<T>> {
    match begin(gpu, block, (words * size_of::<T>()) as u64) {
        Some(asked) => finish(gpu, asked).await,
        None => Ok(Vec::new()),
    }
}

/// The same, asked for now: what is done after this call is not waited for.
pub(super) fn read_later<T: bytemuck::Pod>(
    gpu: &Rc<Gpu>,
    block: &Block,
    words: usize,
) -> impl Future<Output = Result<Vec<T>>> + 'static {
    let asked = begin(gpu, block, (words * size_of::<T>()) as u64);
    let gpu = Rc::clone(gpu);
    async move {
        match asked {
            Some(asked) => finish(&gpu, asked).await,
            None => Ok(Vec::new()),
        }
    }
}

/// Bytes that are on their way to the host.
struct Asked {
    /// `None` once it was given back.
    staging: Option<wgpu::Buffer>,
    bytes: u64,
    answer: Answer,
    /// What they come with.
    sent: wgpu::SubmissionIndex,
}

impl Drop for Asked {
    fn drop(&mut self) {
        // Nobody waits any more.
        if let Some(staging) = &self.staging {
            staging.destroy();
        }
    }
}

fn begin(gpu: &Gpu, block: &Block, bytes: u64) -> Option<Asked> {
    if bytes == 0 {
        return None;
    }
    let staging = gpu.memory.staging(gpu, bytes);
    let sent = gpu.flush(|encoder| encoder.copy_buffer_to_buffer(&block.buffer, 0, &staging, 0, Some(bytes)));
    gpu.recorder.borrow_mut().counters.bytes_read += bytes;
    let answer = Answer::default();
    let heard = answer.clone();
    staging.map_async(wgpu::MapMode::Read, ..bytes, move |result| heard.put(result.map_err(|e| e.to_string())));
    Some(Asked { staging: Some(staging), bytes, answer, sent })
}

async fn finish<T: bytemuck::Pod>(gpu: &Gpu, mut asked: Asked) -> Result<Vec<T>> {
    // Natively this waits, and not for what was sent later; in a browser it does nothing, and the answer comes through its
    // event loop.
    let sent = wgpu::PollType::Wait { submission_index: Some(asked.sent.clone()), timeout: None };
    if let Err(error) = gpu.device.poll(sent) {
        gpu.faults.add(format!("expected the GPU to finish but found: {error}"));
    }
    gpu.faults.check()?;
    let mapped = asked.answer.clone().await;
    gpu.hear().await;
    gpu.faults.check()?;
    mapped.map_err(silent)?;
    let Some(staging) = asked.staging.take() else { return Ok(Vec::new()) };
    let values = {
        let view = staging.get_mapped_range(..asked.bytes).map_err(|error| silent(error.to_string()))?;
        bytemuck::pod_collect_to_vec(&view[..])
    };
    staging.unmap();
    gpu.memory.keep_staging(staging);
    Ok(values)
}

fn silent(error: String) -> Error {
    Error::Backend(format!("expected the GPU to answer but found: {}\nload the model again", one_line(&error)))
}

/// A result that comes later.
#[derive(Clone, Default)]
struct Answer(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    result: Option<Result<(), String>>,
    waker: Option<Waker>,
}

impl Answer {
    fn put(&self, result: Result<(), String>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.result = Some(result);
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }
}

impl Future for Answer {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                waiting.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
