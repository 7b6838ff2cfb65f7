//! One file an operation or a family of them, its kernels beside it: what is checked, and what is dispatched.

use super::{device::Gpu, word};
use crate::error::{Error, Result};

mod argmax;
pub(super) mod attention;
mod decode;
mod elements;
pub(super) mod linear;
mod norm;
pub(super) mod shape;
mod top_k;

/// A grid whose dimensions mean something to `kernel`, where [`Gpu::grid`] would take as many lines as it needs.
fn dimensions(gpu: &Gpu, kernel: &str, groups: [usize; 3]) -> Result<[u32; 3]> {
    // Every device has that many; a test's narrower grids are not for these.
    let most = gpu.max_groups.max(65_535);
    if groups.iter().any(|&groups| groups > most as usize) {
        return Err(Error::Backend(format!(
            "{kernel}: expected at most {most} workgroups in each dimension but found {groups:?}\ngive it fewer rows or sequences at once"
        )));
    }
    let [x, y, z] = groups;
    Ok([word(x)?, word(y)?, word(z)?])
}
