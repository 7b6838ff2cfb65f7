//! Opening a GPU, and what one consists of.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use super::{
    faults::{Faults, Scope},
    memory::Memory,
    pipeline::Pipelines,
    record::Recorder,
};
use crate::error::{Error, Result};

/// Which of a GPU's abilities to use, where it has them. The default is all that wgpu asks for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Arithmetic on 16-bit floats in kernels.
    pub shader_f16: bool,
    /// Sums over subgroups. wgpu cannot ask a browser for them: there, true says that whoever opens the device does.
    pub subgroups: bool,
    /// Largest binding in bytes; a larger matrix is split by its rows. `None` takes what the device offers.
    pub max_binding: Option<u64>,
    /// Most workgroups of a grid's first dimension. `None` takes what the device offers.
    pub max_groups: Option<u32>,
    /// Most bytes of all buffers together; beyond them it is as if the GPU had no more. `None` takes what it gives.
    pub max_memory: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { shader_f16: true, subgroups: !BROWSER, max_binding: None, max_groups: None, max_memory: None }
    }
}

/// Whether this is a browser's WebGPU, which differs in how subgroups are asked for.
pub(super) const BROWSER: bool = cfg!(target_arch = "wasm32");

/// What a GPU is.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its maker's name for it; empty where the browser keeps it to itself.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `webgpu`.
    pub through: String,
    /// It is a program on the CPU.
    pub is_software: bool,
    /// Kernels use 16-bit floats.
    pub shader_f16: bool,
    /// Kernels use subgroups.
    pub subgroups: bool,
    /// Largest binding in bytes.
    pub max_binding: u64,
}

/// A device with everything that is made once.
pub(super) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: Adapter,
    pub max_groups: u32,
    /// Largest buffer that can be bound whole.
    pub max_buffer: u64,
    pub max_memory: Option<u64>,
    pub faults: Arc<Faults>,
    /// What is to be heard from the device yet.
    pub scopes: RefCell<Vec<Scope>>,
    /// Kernels that did not run yet.
    pub first: RefCell<Vec<&'static str>>,
    pub memory: Memory,
    pub pipelines: RefCell<Pipelines>,
    pub recorder: RefCell<Recorder>,
    /// Bytes of weights written since the device was last waited for.
    pub unsettled: Cell<u64>,
    #[cfg(feature = "bench")]
    pub clock: super::clock::Clock,
}

impl Gpu {
    pub async fn open(options: Options) -> Result<Self> {
        let mut description = wgpu::InstanceDescriptor::new_without_display_handle();
        description.backends = wgpu::Backends::PRIMARY;
        let instance = wgpu::Instance::new(description);
        let wanted = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..wgpu::RequestAdapterOptions::default()
        };
        let adapter = instance.request_adapter(&wanted).await.map_err(|error| {
            Error::Unsupported(format!("expected a GPU but found none: {}", one_line(&error.to_string())))
        })?;
        let (info, offered) = (adapter.get_info(), adapter.limits());
        let mut features = wgpu::Features::empty();
        if options.shader_f16 {
            features |= adapter.features() & wgpu::Features::SHADER_F16;
        }
        // Sums over subgroups are made for 4 invocations and more.
        let subgroups = options.subgroups
            && info.subgroup_min_size >= 4
            && (BROWSER || adapter.features().contains(wgpu::Features::SUBGROUP));
        if subgroups && !BROWSER {
            features |= wgpu::Features::SUBGROUP;
        }
        #[cfg(feature = "bench")]
        if adapter.features().contains(super::clock::Clock::FEATURES) {
            features |= super::clock::Clock::FEATURES;
        }
        let description = wgpu::DeviceDescriptor {
            label: Some("rscapret"),
            required_features: features,
            required_limits: offered.clone(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = adapter.request_device(&description).await.map_err(|error| {
            Error::Unsupported(format!("expected to open the GPU but found: {}", one_line(&error.to_string())))
        })?;
        let faults = Arc::new(Faults::default());
        faults.watch(&device);
        let binding = offered.max_storage_buffer_binding_size.min(offered.max_buffer_size);
        let adapter = Adapter {
            name: info.name.clone(),
            through: format!("{:?}", info.backend).replace("Browser", "").to_lowercase(),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups,
            max_binding: options.max_binding.unwrap_or(binding).min(binding),
        };
        let groups = offered.max_compute_workgroups_per_dimension;
        Ok(Gpu {
            max_groups: options.max_groups.unwrap_or(groups).clamp(1, groups),
            max_buffer: binding,
            max_memory: options.max_memory,
            scopes: RefCell::default(),
            first: RefCell::default(),
            pipelines: RefCell::new(Pipelines::new(&adapter)),
            recorder: RefCell::new(Recorder::new(&device)),
            memory: Memory::default(),
            unsettled: Cell::new(0),
            #[cfg(feature = "bench")]
            clock: super::clock::Clock::new(&device),
            device,
            queue,
            adapter,
            faults,
        })
    }

    /// Does what is asked of the device under the name of `what`, by which errors will be told.
    pub fn watched<R>(&self, what: &str, ask: impl FnOnce() -> R) -> R {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let guards = [Internal, OutOfMemory, Validation].map(|filter| self.device.push_error_scope(filter));
        let asked = ask();
        // The last one that was opened is closed first.
        self.scopes.borrow_mut().extend(guards.into_iter().rev().map(|guard| Scope::new(what, guard.pop())));
        asked
    }

    /// Waits for what the device has to say of it.
    pub async fn hear(&self) {
        for scope in self.scopes.take() {
            scope.hear(&self.faults).await;
        }
    }

    /// A grid of `groups` workgroups, in as few lines as its dimensions allow. Kernels number them by `group_number` and
    /// leave out those beyond.
    pub fn grid(&self, groups: usize) -> Result<[u32; 3]> {
        let groups = super::word(groups)?.max(1);
        let lines = groups.div_ceil(self.max_groups);
        // Only a test narrows the first dimension; the second has the device's own bound, which is 65,535 at least.
        if lines > self.max_groups.max(65_535) {
            return Err(Error::Backend(format!("expected fewer workgroups but found {groups}")));
        }
        Ok([groups.div_ceil(lines), lines, 1])
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // A browser would keep all of its memory until its collector of garbage comes by.
        if BROWSER {
            self.device.destroy();
        }
    }
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
