//! What was asked of the device and is not sent yet.
//!
//! Bind groups are made once for each kernel and set of buffers. Sizes and positions, which change from step to step, are
//! in one uniform buffer that is written with each submission; a dispatch names its place in there.

use std::{collections::HashMap, rc::Rc};

use super::{
    device::Gpu,
    memory::{Block, Id},
    pipeline::{Kernel, MOVED_BINDING, Pipeline},
    replay::{MOVED_BYTES, Tape},
};
use crate::error::{Error, Result};

/// Bytes from one dispatch's parameters to the next: what devices align to at most.
pub(super) const SLOT: usize = 256;
/// Dispatches of one submission.
const SLOTS: usize = 512;
/// Bind groups beyond which all are made anew.
const MOST_BIND_GROUPS: usize = 1 << 14;
/// Most storage buffers of a kernel, of which every device has eight.
const MOST_BUFFERS: usize = 8;
/// Multiplications of a submission, about: systems end those that take seconds.
const WORK: u64 = 20_000_000_000;

/// What was asked of a device since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Kernels started.
    pub dispatches: u64,
    /// Times that commands were sent.
    pub submissions: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Buffers made.
    pub buffers: u64,
    /// Steps that were asked for again as they were recorded ([`crate::Backend::replay`]); their kernels count above.
    pub replays: u64,
    /// Bytes read back.
    pub bytes_read: u64,
    /// Bytes of all buffers at this time.
    pub bytes: u64,
}

/// A kernel with all that it is started with.
#[derive(Clone)]
pub(super) struct Dispatch {
    #[cfg(feature = "bench")]
    pub name: &'static str,
    pub pipeline: wgpu::ComputePipeline,
    pub bind_group: wgpu::BindGroup,
    /// Of its parameters, in the buffer that its bind group has.
    pub offset: u32,
    pub grid: [u32; 3],
}

type Key = (Kernel, [Id; MOST_BUFFERS]);

pub(super) struct Recorder {
    uniforms: wgpu::Buffer,
    /// A zero: what is not replayed is at its own time.
    now: wgpu::Buffer,
    params: Vec<u8>,
    pub pending: Vec<Dispatch>,
    work: u64,
    bind_groups: HashMap<Key, wgpu::BindGroup>,
    /// Of the step that is being recorded to be replayed.
    pub tape: Option<Tape>,
    pub counters: Counters,
}

impl Recorder {
    pub fn new(device: &wgpu::Device) -> Self {
        let uniform = |label, size| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        Recorder {
            uniforms: uniform("parameters", (SLOT * SLOTS) as u64),
            now: uniform("now", MOVED_BYTES),
            params: Vec::with_capacity(SLOT * SLOTS),
            pending: Vec::with_capacity(SLOTS),
            work: 0,
            bind_groups: HashMap::new(),
            tape: None,
            counters: Counters::default(),
        }
    }

    /// Bind groups that are kept.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.bind_groups.len()
    }
}

impl Gpu {
    /// Counters by now.
    pub fn counters(&self) -> Counters {
        let memory = &self.memory;
        Counters { buffers: memory.made.get(), bytes: memory.bytes.get(), ..self.recorder.borrow().counters }
    }

    /// Records a kernel with its parameters and its storage buffers in the order of their bindings.
    pub fn dispatch(&self, kernel: Kernel, params: &[u32], buffers: &[&Rc<Block>], grid: [u32; 3]) -> Result<()> {
        let mut ids = [Id::MAX; MOST_BUFFERS];
        if buffers.len() > MOST_BUFFERS || 4 * params.len() > SLOT {
            return Err(Error::Backend(format!("{}: expected fewer buffers and parameters", kernel.name())));
        }
        for (id, block) in ids.iter_mut().zip(buffers) {
            *id = block.id;
        }
        let pipeline = self.pipelines.borrow_mut().get(self, kernel)?;
        let recorder = &mut *self.recorder.borrow_mut();
        let bind_group = match recorder.bind_groups.get(&(kernel, ids)) {
            Some(made) => made.clone(),
            None => {
                let storage = buffers.iter().map(|block| &block.buffer);
                let made = self.bind(kernel, &pipeline, [&recorder.uniforms, &recorder.now], storage);
                recorder.counters.bind_groups += 1;
                recorder.bind_groups.insert((kernel, ids), made.clone());
                made
            }
        };
        let offset = recorder.params.len();
        recorder.params.extend(params.iter().flat_map(|p| p.to_le_bytes()));
        recorder.params.resize(offset + SLOT, 0);
        if let Some(tape) = &mut recorder.tape {
            tape.push(kernel, &pipeline, &recorder.params[offset..], buffers, grid);
        }
        let dispatch = Dispatch {
            #[cfg(feature = "bench")]
            name: kernel.name(),
            pipeline: pipeline.pipeline.clone(),
            bind_group,
            offset: offset as u32,
            grid,
        };
        self.ask(recorder, dispatch);
        Ok(())
    }

    /// Puts a kernel behind those that are pending, and sends them when they are many.
    pub fn ask(&self, recorder: &mut Recorder, dispatch: Dispatch) {
        recorder.pending.push(dispatch);
        recorder.counters.dispatches += 1;
        if recorder.pending.len() == SLOTS {
            self.send(recorder, |_| {});
        }
    }

    /// A kernel's buffers: of parameters, of `moved`, and the storage buffers in the order of their bindings.
    pub fn bind<'b>(
        &self,
        kernel: Kernel,
        pipeline: &Pipeline,
        [params, moved]: [&'b wgpu::Buffer; 2],
        storage: impl Iterator<Item = &'b wgpu::Buffer>,
    ) -> wgpu::BindGroup {
        let of_params = wgpu::BufferBinding { buffer: params, offset: 0, size: wgpu::BufferSize::new(SLOT as u64) };
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(of_params) }];
        let whole = |(binding, buffer): (u32, &'b wgpu::Buffer)| wgpu::BindGroupEntry {
            binding,
            resource: buffer.as_entire_binding(),
        };
        entries.extend(pipeline.bindings.iter().copied().zip(storage).map(whole));
        entries.extend(pipeline.moves.then_some((MOVED_BINDING, moved)).map(whole));
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name()),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// Tells of multiplications that were recorded; sends when enough have come together.
    pub fn worked(&self, multiplications: u64) {
        let recorder = &mut *self.recorder.borrow_mut();
        if let Some(tape) = &mut recorder.tape {
            tape.work += multiplications;
        }
        self.work(recorder, multiplications);
    }

    /// The same of what is replayed.
    pub fn work(&self, recorder: &mut Recorder, multiplications: u64) {
        recorder.work += multiplications;
        if recorder.work > WORK {
            self.send(recorder, |_| {});
        }
    }

    /// Sends what is recorded, and after it what `last` adds: what it can be waited for by.
    pub fn flush(&self, last: impl FnOnce(&mut wgpu::CommandEncoder)) -> wgpu::SubmissionIndex {
        let recorder = &mut *self.recorder.borrow_mut();
        // What is added, and what is written, no replay would do again.
        recorder.tape = None;
        self.send(recorder, last)
    }

    /// Fills a block from its beginning; a multiple of 4 bytes.
    pub fn write(&self, block: &Block, bytes: &[u8]) -> Result<()> {
        self.write_at(block, 0, bytes)
    }

    /// Fills a part of a block.
    pub fn write_at(&self, block: &Block, offset: u64, bytes: &[u8]) -> Result<()> {
        // Writes go before everything that is not sent yet, which may still need what was there.
        self.before_a_write();
        if !bytes.is_empty() {
            self.queue.write_buffer(&block.buffer, offset, bytes);
        }
        Ok(())
    }

    /// Sends what is pending, and gives up a recording.
    pub fn before_a_write(&self) {
        let recorder = &mut *self.recorder.borrow_mut();
        recorder.tape = None;
        if !recorder.pending.is_empty() {
            self.send(recorder, |_| {});
        }
    }

    fn send(&self, recorder: &mut Recorder, last: impl FnOnce(&mut wgpu::CommandEncoder)) -> wgpu::SubmissionIndex {
        let first = self.first.take();
        let submitted = match first.is_empty() {
            true => self.submit(recorder, last),
            false => self.watched(&format!("the first run of {}", first.join(", ")), || self.submit(recorder, last)),
        };
        recorder.counters.submissions += 1;
        recorder.pending.clear();
        recorder.params.clear();
        recorder.work = 0;
        let gone = self.memory.sweep();
        if recorder.bind_groups.len() > MOST_BIND_GROUPS {
            recorder.bind_groups.clear();
        } else if !gone.is_empty() {
            recorder.bind_groups.retain(|(_, ids), _| !ids.iter().any(|id| gone.contains(id)));
        }
        submitted
    }

    fn submit(&self, recorder: &Recorder, last: impl FnOnce(&mut wgpu::CommandEncoder)) -> wgpu::SubmissionIndex {
        if !recorder.params.is_empty() {
            self.queue.write_buffer(&recorder.uniforms, 0, &recorder.params);
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if !recorder.pending.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            #[cfg(feature = "bench")]
            self.clock.look(&mut pass, "");
            for dispatch in &recorder.pending {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bind_group, &[dispatch.offset]);
                let [x, y, z] = dispatch.grid;
                pass.dispatch_workgroups(x, y, z);
                #[cfg(feature = "bench")]
                self.clock.look(&mut pass, dispatch.name);
            }
        }
        last(&mut encoder);
        self.queue.submit([encoder.finish()])
    }
}
