//! A value that was made outside of the graph, as one node of it: what it was made of is kept only as far as its gradient
//! needs it, and no node of Candle's own stands between.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};

/// `back` gives the inputs' gradients, each in the type of its input, from the value's.
pub(super) struct Node<F> {
    name: &'static str,
    /// Until the graph has it.
    value: Mutex<Option<Value>>,
    back: F,
}

enum Value {
    /// Of which the graph gets a copy.
    Tensor(Tensor),
    /// What a kernel of ours made.
    #[cfg(feature = "cuda")]
    Cuda(CudaStorage, Shape),
}

impl<F> Node<F> {
    pub fn new(name: &'static str, value: Tensor, back: F) -> Self {
        Node { name, value: Mutex::new(Some(Value::Tensor(value))), back }
    }

    /// Without a copy.
    #[cfg(feature = "cuda")]
    pub fn of_kernel(name: &'static str, (value, shape): (CudaStorage, Shape), back: F) -> Self {
        Node { name, value: Mutex::new(Some(Value::Cuda(value, shape))), back }
    }

    fn take(&self) -> Result<Value> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("{}: expected to be applied once", self.name),
        }
    }

    fn tensor(&self) -> Result<Tensor> {
        match self.take()? {
            Value::Tensor(value) => value.contiguous(),
            #[cfg(feature = "cuda")]
            Value::Cuda(..) => bail!("{}: expected a tensor on the CPU", self.name),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        let value = self.tensor()?;
        let (storage, layout) = value.storage_and_layout();
        let Storage::Cpu(cpu) = &*storage else { bail!("{}: expected a tensor on the CPU", self.name) };
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
        let copy = match cpu {
            CpuStorage::F32(values) => CpuStorage::F32(values[from..to].to_vec()),
            CpuStorage::BF16(values) => CpuStorage::BF16(values[from..to].to_vec()),
            other => bail!("{}: expected f32 or bf16 but found {:?}", self.name, other.dtype()),
        };
        Ok((copy, layout.shape().clone()))
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        let value = match self.take()? {
            Value::Tensor(value) => value.contiguous()?,
            #[cfg(feature = "cuda")]
            Value::Cuda(value, shape) => return Ok((value, shape)),
        };
        let (storage, layout) = value.storage_and_layout();
        let Storage::Cuda(cuda) = &*storage else { bail!("{}: expected a tensor on a CUDA device", self.name) };
        // Candle copies the whole storage, whatever the layout says of it.
        if layout.start_offset() != 0 {
            bail!("{}: expected a tensor of its own but found a part of one", self.name);
        }
        Ok((cuda.try_clone(layout)?, layout.shape().clone()))
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((self.back)(grad)?))
    }
}

impl<F: Fn(&Tensor) -> Result<(Tensor, Option<Tensor>)>> CustomOp2 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, second) = (self.back)(grad)?;
        Ok((Some(first), second))
    }
}

impl<F: Fn(&Tensor) -> Result<[Option<Tensor>; 3]>> CustomOp3 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [first, second, third] = (self.back)(grad)?;
        Ok((first, second, third))
    }
}
