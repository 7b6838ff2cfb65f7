//! Kernels of ours on CUDA: how they are started, and how the device is opened that they run on. The one place in the tree
//! with `unsafe` code: that a kernel keeps to the memory it is given is seen in its source alone.
#![allow(unsafe_code)]

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{CudaView, LaunchConfig, PushKernelArg},
    },
    op::BackpropOp,
};
use half::bf16;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A file of kernels: its name, and what nvcc made of it.
pub struct Module(&'static str, &'static str);

pub const NORM_FILE: Module = Module("rscapret-norm", NORM);
pub const ACTIVATION_FILE: Module = Module("rscapret-activation", ACTIVATION);
pub const ATTENTION_FILE: Module = Module("rscapret-attention", ATTENTION);

/// Bytes that a thread reads at once.
const PACK: usize = 16;

/// What a kernel takes by value.
#[derive(Clone, Copy)]
pub enum Param {
    U32(u32),
    I32(i32),
    F32(f32),
}

impl Param {
    /// # Errors
    /// More than kernels count to.
    pub fn of(count: usize) -> Result<Self> {
        word(count).map(Param::U32)
    }
}

/// As kernels count.
pub fn word(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| candle_core::Error::msg(format!("expected fewer than 2^32 but found {count}")))
}

/// The device and the type of tensors that one kernel reads.
pub struct Operands {
    device: CudaDevice,
    pub dtype: DType,
    /// Values of a pack.
    pub pack: usize,
}

impl Operands {
    /// `None` unless all are on one CUDA device, all of f32 or all of bf16, whole in memory, and none is empty. Rows of
    /// `width` values are read in packs if they consist of them.
    pub fn of(tensors: &[&Tensor], width: usize) -> Option<Self> {
        let first = tensors.first()?;
        let (Device::Cuda(device), dtype) = (first.device(), first.dtype()) else { return None };
        let most = match dtype {
            DType::F32 | DType::BF16 => PACK / dtype.size_in_bytes(),
            _ => return None,
        };
        let fits = |x: &&Tensor| {
            x.dtype() == dtype && x.device().same_device(first.device()) && x.is_contiguous() && x.elem_count() > 0
        };
        let aligned = |x: &&Tensor| x.layout().start_offset().is_multiple_of(most);
        let pack = if width.is_multiple_of(most) && tensors.iter().all(aligned) { most } else { 1 };
        tensors.iter().all(fits).then(|| Operands { device: device.clone(), dtype, pack })
    }

    /// Runs kernel `name` of `module`, in the variant for these operands: after `inputs` it takes new memory for `outputs`, which
    /// it must write all of, then `params`. `grid` blocks of `block` threads.
    ///
    /// # Errors
    /// What the device answers; a tensor that [`Operands::of`] did not see.
    pub fn run<const N: usize>(
        &self,
        module: &Module,
        name: &str,
        inputs: &[&Tensor],
        outputs: [(DType, usize); N],
        params: &[Param],
        (grid, block): ((u32, u32), u32),
    ) -> Result<[CudaStorage; N]> {
        let kind = if self.dtype == DType::F32 { "f32" } else { "bf16" };
        let packed = if self.pack > 1 { "_packed" } else { "" };
        let function = self.device.get_or_load_custom_func(&format!("{name}_{kind}{packed}"), module.0, module.1)?;
        let guards: Vec<_> = inputs.iter().map(|x| x.storage_and_layout()).collect();
        let views = guards.iter().map(|(storage, layout)| View::of(storage, layout)).collect::<Result<Vec<_>>>()?;
        let mut made = Vec::with_capacity(N);
        for (dtype, elements) in outputs {
            // SAFETY: the kernel writes every element before anyone reads one: it is the first that the stream does with them.
            let slice = unsafe {
                match dtype {
                    DType::F32 => CudaStorageSlice::F32(self.device.alloc::<f32>(elements)?),
                    DType::BF16 => CudaStorageSlice::BF16(self.device.alloc::<bf16>(elements)?),
                    other => bail!("{name}: expected f32 or bf16 but found {other:?}"),
                }
            };
            made.push(CudaStorage { slice, device: self.device.clone() });
        }
        let mut builder = function.builder();
        for view in &views {
            match view {
                View::F32(view) => builder.arg(view),
                View::BF16(view) => builder.arg(view),
            };
        }
        for storage in &mut made {
            match &mut storage.slice {
                CudaStorageSlice::F32(slice) => builder.arg(slice),
                CudaStorageSlice::BF16(slice) => builder.arg(slice),
                _ => bail!("{name}: expected f32 or bf16"),
            };
        }
        for param in params {
            match param {
                Param::U32(value) => builder.arg(value),
                Param::I32(value) => builder.arg(value),
                Param::F32(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig { grid_dim: (grid.0, grid.1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the callers, all in this folder, give what the kernel's signature says, with the sizes of these tensors; the
        // kernels, in this folder, too, stay inside of them.
        unsafe { builder.launch(config) }.w()?;
        drop(views);
        made.try_into().map_err(|_| candle_core::Error::msg(format!("{name}: expected {N} outputs")))
    }
}

/// An input, from where its tensor begins.
enum View<'a> {
    F32(CudaView<'a, f32>),
    BF16(CudaView<'a, bf16>),
}

impl<'a> View<'a> {
    fn of(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let (Storage::Cuda(cuda), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("expected a whole tensor on a CUDA device but found {layout:?}")
        };
        Ok(match &cuda.slice {
            CudaStorageSlice::F32(slice) => View::F32(slice.slice(from..to)),
            CudaStorageSlice::BF16(slice) => View::BF16(slice.slice(from..to)),
            _ => bail!("expected f32 or bf16 but found {:?}", cuda.dtype()),
        })
    }
}

/// What a kernel made, as a tensor outside of any graph.
pub fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// The NVIDIA GPU of that number, with one stream for all threads. `Device::new_cuda` would give each its own: a thread would
/// read what another has not computed yet, and memory that another has freed.
///
/// # Errors
/// What the driver answers, where there is no such GPU.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: everything that is asked of this device goes through that one stream, which keeps the order, so no event needs to
        // say when a tensor may be read or freed. They would be two for each tensor, recorded at each use.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}
