//! Gradients of CUDA devices, added by NCCL; everything else goes over the loopback. NCCL takes sums in an order of its
//! own, so the last bits of a run on N GPUs are not those of one process with N workers; they are the same every time on
//! the same machine.
//!
//! This part has not been run: it was written against cudarc 0.19.10, on machines without two GPUs.

use std::{collections::BTreeMap, thread, time::Duration};

use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::{
        driver::DriverError,
        nccl::{Comm, Id, ReduceOp, result::NcclError},
    },
};
use rscapret::{Error, Result};

use super::{Group, Host, sum, wire};

/// Bytes of what NCCL's processes find one another by.
const ID: usize = 128;
/// Time between looks whether a sum is there.
const LOOK: Duration = Duration::from_micros(50);

/// A group whose sums NCCL makes.
pub struct Nccl<'g> {
    group: &'g dyn Group,
    comm: Comm,
}

impl<'g> Nccl<'g> {
    /// All of the group open it together, each with a device of its own.
    ///
    /// # Errors
    /// What NCCL answers.
    pub fn new(group: &'g dyn Group, device: &CudaDevice) -> Result<Self> {
        let own = if group.rank() == 0 { Id::new().map_err(nccl)?.internal().map(|c| c as u8) } else { [0; ID] };
        let id: [u8; ID] = group.broadcast(&own)?.try_into().map_err(|found: Vec<u8>| {
            Error::Malformed(format!("expected {ID} bytes of NCCL's but found {}", found.len()))
        })?;
        let id = Id::uninit(id.map(|byte| byte as _));
        let comm = Comm::from_rank(device.cuda_stream(), group.rank(), group.world(), id).map_err(nccl)?;
        Ok(Nccl { group, comm })
    }

    /// Names and lengths of the variables that any process has a gradient of.
    fn layout(&self, own: &Host) -> Result<BTreeMap<String, usize>> {
        let own = wire::pack(
            own.iter()
                .flat_map(|(name, values)| [name.as_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()]),
        );
        let mut layout = BTreeMap::new();
        for bytes in self.group.all_gather(own)? {
            for two in wire::unpack(&bytes)?.chunks(2) {
                let entry = || {
                    let [name, length] = two else { return None };
                    let length = u64::from_le_bytes((*length).try_into().ok()?);
                    Some((String::from_utf8(name.to_vec()).ok()?, usize::try_from(length).ok()?))
                };
                let missing = || Error::Malformed("expected names and lengths but found something else".into());
                let (name, length) = entry().ok_or_else(missing)?;
                layout.insert(name, length);
            }
        }
        Ok(layout)
    }

    /// The sum of all processes' values.
    fn reduce(&self, own: &[f32]) -> Result<Vec<f32>> {
        let stream = self.comm.stream();
        let mut buffer = stream.clone_htod(own).map_err(driver)?;
        self.comm.all_reduce_in_place(&mut buffer, &ReduceOp::Sum).map_err(nccl)?;
        // Looked for rather than waited for: a process that is gone would be waited for for ever.
        let done = stream.record_event(None).map_err(driver)?;
        while !done.try_is_complete().map_err(driver)? {
            self.group.check()?;
            thread::sleep(LOOK);
        }
        stream.clone_dtoh(&buffer).map_err(driver)
    }
}

fn nccl(error: NcclError) -> Error {
    Error::Backend(format!("NCCL: expected success but found {:?}\nset NCCL_DEBUG=INFO to see why", error.0))
}

fn driver(error: DriverError) -> Error {
    Error::Backend(error.to_string())
}

impl Group for Nccl<'_> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world(&self) -> usize {
        self.group.world()
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.group.all_gather(own)
    }

    fn broadcast(&self, own: &[u8]) -> Result<Vec<u8>> {
        self.group.broadcast(own)
    }

    fn all_reduce_sum(&self, parts: Vec<Host>) -> Result<Host> {
        let own = sum(parts);
        let layout = self.layout(&own)?;
        let mut flat = Vec::with_capacity(layout.values().sum());
        for (name, &length) in &layout {
            match own.get(name) {
                Some(values) => flat.extend(values),
                None => flat.resize(flat.len() + length, 0.0),
            }
        }
        let flat = self.reduce(&flat)?;
        let mut rest = flat.as_slice();
        let mut total = Host::new();
        for (name, length) in layout {
            let (values, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            total.insert(name, values.to_vec());
            rest = after;
        }
        Ok(total)
    }

    fn check(&self) -> Result<()> {
        self.group.check()
    }
}
