//! Buffers: a pool for activations, and single ones for weights and caches.
//!
//! A block goes back to the pool when its last user drops it, even while operations on it are recorded: what takes it
//! next is recorded after them. The pool always gives the oldest block that fits, so a loop that takes the same sizes in
//! the same order gets the same blocks, and with them the same bind groups.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use super::device::Gpu;
use crate::error::{Error, Result};

/// What a buffer is known by; never used twice.
pub(super) type Id = u32;

/// What activations, weights and caches are for.
const STORAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_DST).union(wgpu::BufferUsages::COPY_SRC);
/// Free bytes beyond which the pool lets go of what it keeps.
const MOST_FREE: u64 = 1 << 29;

/// A buffer that somebody uses.
pub(super) struct Block {
    pub id: Id,
    pub buffer: wgpu::Buffer,
    /// Where it goes; nowhere for a buffer of its own.
    pool: Option<Rc<Pool>>,
    gone: Rc<RefCell<Vec<Gone>>>,
}

/// A buffer that nobody uses any more; what is recorded and not sent may still do.
pub(super) type Gone = (Id, wgpu::Buffer);

impl Drop for Block {
    fn drop(&mut self) {
        match &self.pool {
            Some(pool) => pool.give(self.id, self.buffer.clone()),
            None => self.gone.borrow_mut().push((self.id, self.buffer.clone())),
        }
    }
}

/// Free blocks by size, then by age.
#[derive(Default)]
struct Pool {
    free: RefCell<BTreeMap<u64, BTreeMap<Id, wgpu::Buffer>>>,
    free_bytes: Cell<u64>,
}

impl Pool {
    fn give(&self, id: Id, buffer: wgpu::Buffer) {
        self.free_bytes.set(self.free_bytes.get() + buffer.size());
        self.free.borrow_mut().entry(buffer.size()).or_default().insert(id, buffer);
    }

    fn take(&self, size: u64) -> Option<(Id, wgpu::Buffer)> {
        let found = self.free.borrow_mut().get_mut(&size)?.pop_first()?;
        self.free_bytes.set(self.free_bytes.get() - size);
        Some(found)
    }

    fn claim(&self, id: Id) -> Option<wgpu::Buffer> {
        let buffer = self.free.borrow_mut().values_mut().find_map(|blocks| blocks.remove(&id))?;
        self.free_bytes.set(self.free_bytes.get() - buffer.size());
        Some(buffer)
    }
}

/// All memory of a device.
#[derive(Default)]
pub(super) struct Memory {
    pool: Rc<Pool>,
    next: Cell<Id>,
    gone: Rc<RefCell<Vec<Gone>>>,
    /// Where results are copied to be read, by size.
    staging: RefCell<BTreeMap<u64, Vec<wgpu::Buffer>>>,
    /// Buffers made so far.
    pub made: Cell<u64>,
    /// Bytes of those that are not destroyed.
    pub bytes: Cell<u64>,
    /// Bytes behind each block that no kernel may touch, in tests.
    pub guard: Cell<u64>,
}

/// What a device without enough memory is told with.
pub(super) const NO_MEMORY: &str = "expected enough memory on the GPU but found less";

/// What guards consist of, in tests.
pub(super) const SENTINEL: u32 = 0x7fc5_eed5;

impl Memory {
    /// A block of at least `bytes` from the pool; its content is whatever was there.
    pub fn take(&self, gpu: &Gpu, bytes: u64) -> Result<Rc<Block>> {
        let size = class(bytes + self.guard.get());
        let (id, buffer) = match self.pool.take(size) {
            Some(found) => found,
            None => self.make(gpu, size, STORAGE, "activations")?,
        };
        let block = Rc::new(Block { id, buffer, pool: Some(Rc::clone(&self.pool)), gone: Rc::clone(&self.gone) });
        if self.guard.get() > 0 {
            gpu.write(&block, bytemuck::cast_slice(&vec![SENTINEL; (size / 4) as usize]))?;
        }
        Ok(block)
    }

    /// A buffer of its own, zeros.
    pub fn own(&self, gpu: &Gpu, bytes: u64, label: &str) -> Result<Rc<Block>> {
        let (used, guard) = (bytes.next_multiple_of(16).max(16), self.guard.get());
        let (id, buffer) = self.make(gpu, used + guard, STORAGE, label)?;
        let block = Rc::new(Block { id, buffer, pool: None, gone: Rc::clone(&self.gone) });
        if guard > 0 {
            gpu.write_at(&block, used, bytemuck::cast_slice(&vec![SENTINEL; (guard / 4) as usize]))?;
        }
        Ok(block)
    }

    /// A buffer of its own that kernels take parameters from.
    pub fn uniform(&self, gpu: &Gpu, bytes: u64, label: &str) -> Result<Rc<Block>> {
        self.used_as(gpu, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST, bytes, label)
    }

    /// A buffer of its own for other uses than kernels have.
    pub fn used_as(&self, gpu: &Gpu, usage: wgpu::BufferUsages, bytes: u64, label: &str) -> Result<Rc<Block>> {
        let (id, buffer) = self.make(gpu, bytes, usage, label)?;
        Ok(Rc::new(Block { id, buffer, pool: None, gone: Rc::clone(&self.gone) }))
    }

    /// A free block out of the pool, if it is there.
    pub fn claim(&self, id: Id) -> Option<Rc<Block>> {
        let buffer = self.pool.claim(id)?;
        Some(Rc::new(Block { id, buffer, pool: Some(Rc::clone(&self.pool)), gone: Rc::clone(&self.gone) }))
    }

    fn make(&self, gpu: &Gpu, size: u64, usage: wgpu::BufferUsages, label: &str) -> Result<(Id, wgpu::Buffer)> {
        let most = gpu.max_buffer;
        if size > most {
            return Err(Error::Backend(format!("{label}: expected at most {most} bytes but found {size}")));
        }
        let bytes = self.bytes.get() + size;
        if gpu.max_memory.is_some_and(|most| bytes > most) {
            return Err(Error::Backend(format!("{NO_MEMORY}: {label} would make it {bytes} bytes")));
        }
        self.bytes.set(bytes);
        let description = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let id = self.next.get();
        self.next.set(id + 1);
        self.made.set(self.made.get() + 1);
        Ok((id, gpu.device.create_buffer(&description)))
    }

    /// A buffer of at least `bytes` that can be read.
    pub fn staging(&self, gpu: &Gpu, bytes: u64) -> wgpu::Buffer {
        let size = class(bytes);
        if let Some(kept) = self.staging.borrow_mut().get_mut(&size).and_then(Vec::pop) {
            return kept;
        }
        self.made.set(self.made.get() + 1);
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("result"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Takes back a buffer of [`Memory::staging`], not mapped.
    pub fn keep_staging(&self, buffer: wgpu::Buffer) {
        self.staging.borrow_mut().entry(buffer.size()).or_default().push(buffer);
    }

    /// Destroys the buffers that nobody uses any more, and the free blocks if they are many: their ids. Nothing that is
    /// recorded may need them. A browser would keep them until its collector of garbage comes by.
    pub fn sweep(&self) -> Vec<Id> {
        if self.pool.free_bytes.get() > MOST_FREE {
            let free = std::mem::take(&mut *self.pool.free.borrow_mut());
            self.pool.free_bytes.set(0);
            self.gone.borrow_mut().extend(free.into_values().flatten());
        }
        let gone = std::mem::take(&mut *self.gone.borrow_mut());
        let destroy = |(id, buffer): Gone| {
            buffer.destroy();
            self.bytes.set(self.bytes.get() - buffer.size());
            id
        };
        gone.into_iter().map(destroy).collect()
    }
}

/// Sizes that blocks come in: powers of two, above 16 MiB multiples of that.
fn class(bytes: u64) -> u64 {
    const STEP: u64 = 1 << 24;
    if bytes > STEP { bytes.next_multiple_of(STEP) } else { bytes.next_power_of_two().max(256) }
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn classes_waste_little() {
        assert_eq!([0, 1, 256, 257, 4096, 5000].map(class), [256, 256, 256, 512, 4096, 8192]);
        assert_eq!(class((1 << 24) + 1), 2 << 24);
        assert_eq!(class(5 << 24), 5 << 24);
    }
}
