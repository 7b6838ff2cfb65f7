//! A step that comes again for every token: recorded once, replayed with one number.
//!
//! What differs from one step of decoding to the next is where its token stands. Kernels that go by it read `moved`
//! (`kernels/moved.wgsl`); all else, parameters and grids among it, stays as it was recorded.

use std::{
    collections::HashMap,
    rc::{Rc, Weak},
};

use super::{
    device::Gpu,
    memory::{Block, Id},
    pipeline::{Kernel, Pipeline},
    record::{Dispatch, SLOT},
};
use crate::error::Result;

/// Of the buffer of `moved`.
pub(super) const MOVED_BYTES: u64 = 16;

/// What a step asks for, while it is recorded. It is given up when something is written or read in its midst.
#[derive(Default)]
pub(super) struct Tape {
    asked: Vec<Asked>,
    params: Vec<u8>,
    pub work: u64,
}

struct Asked {
    kernel: Kernel,
    pipeline: Rc<Pipeline>,
    blocks: Vec<(Id, Weak<Block>)>,
    grid: [u32; 3],
}

impl Tape {
    pub fn push(
        &mut self,
        kernel: Kernel,
        pipeline: &Rc<Pipeline>,
        params: &[u8],
        buffers: &[&Rc<Block>],
        grid: [u32; 3],
    ) {
        // Not held yet: blocks go back to the pool and are taken again in the middle of a step.
        let blocks = buffers.iter().map(|block| (block.id, Rc::downgrade(block))).collect();
        self.asked.push(Asked { kernel, pipeline: Rc::clone(pipeline), blocks, grid });
        self.params.extend_from_slice(params);
    }

    /// Everything that was touched, held so that nobody else gets it; `None` where something is gone.
    fn hold(&self, gpu: &Gpu) -> Option<HashMap<Id, Rc<Block>>> {
        let touched = || self.asked.iter().flat_map(|asked| &asked.blocks);
        let mut held: HashMap<Id, Rc<Block>> =
            touched().filter_map(|(id, block)| Some((*id, block.upgrade()?))).collect();
        for (id, _) in touched() {
            if !held.contains_key(id) {
                held.insert(*id, gpu.memory.claim(*id)?);
            }
        }
        Some(held)
    }
}

/// A step of a WebGpu as it was recorded.
pub struct Recording {
    dispatches: Vec<Dispatch>,
    /// Of what it reads.
    input: Id,
    moved: Rc<Block>,
    work: u64,
    /// Parameters, activations, weights, caches: what replays read and write.
    _held: Vec<Rc<Block>>,
}

impl Gpu {
    /// Does `step`, which reads `input`, and keeps what it asks for, where that can be asked for again.
    pub fn record<T>(&self, input: &Rc<Block>, step: impl FnOnce() -> Result<T>) -> Result<(T, Option<Recording>)> {
        self.recorder.borrow_mut().tape = Some(Tape::default());
        let done = step();
        let tape = self.recorder.borrow_mut().tape.take();
        let done = done?;
        let recording = match tape {
            Some(tape) => self.keep(&tape, input.id)?,
            None => None,
        };
        Ok((done, recording))
    }

    fn keep(&self, tape: &Tape, input: Id) -> Result<Option<Recording>> {
        let Some(held) = tape.hold(self) else { return Ok(None) };
        if tape.asked.is_empty() {
            return Ok(None);
        }
        let params = self.memory.uniform(self, tape.params.len() as u64, "parameters of a recorded step")?;
        let moved = self.memory.uniform(self, MOVED_BYTES, "moved")?;
        // Nothing that is pending reads it: there was no such buffer.
        self.queue.write_buffer(&params.buffer, 0, &tape.params);
        let made = |(at, asked): (usize, &Asked)| {
            let storage = asked.blocks.iter().map(|(id, _)| &held[id].buffer);
            let bind_group = self.bind(asked.kernel, &asked.pipeline, [&params.buffer, &moved.buffer], storage);
            Dispatch {
                #[cfg(feature = "bench")]
                name: asked.kernel.name(),
                pipeline: asked.pipeline.pipeline.clone(),
                bind_group,
                offset: (at * SLOT) as u32,
                grid: asked.grid,
            }
        };
        let made = || tape.asked.iter().enumerate().map(made).collect::<Vec<_>>();
        let dispatches = self.watched("a recorded step", made);
        self.recorder.borrow_mut().counters.bind_groups += dispatches.len() as u64;
        let _held = held.into_values().chain([params]).collect();
        Ok(Some(Recording { dispatches, input, moved, work: tape.work, _held }))
    }

    /// Asks for a recorded step again, `moved` tokens later than it was recorded; false, and nothing is done, if `input` is not
    /// what it reads.
    pub fn replay(&self, recording: &Recording, input: &Block, moved: i64) -> bool {
        if recording.input != input.id {
            return false;
        }
        // The number is written before what is not sent yet, which may be the same step.
        self.before_a_write();
        // Modulo 2^32, as kernels add it: a step can also come earlier.
        self.queue.write_buffer(&recording.moved.buffer, 0, &(moved as u32).to_le_bytes());
        let recorder = &mut *self.recorder.borrow_mut();
        recorder.counters.replays += 1;
        for dispatch in &recording.dispatches {
            self.ask(recorder, dispatch.clone());
        }
        self.work(recorder, recording.work);
        true
    }
}
