//! What goes wrong on the device is told by the next read, in words that name it.

use pollster::block_on;

use super::{Options, open};
use crate::{
    backend::{Backend, WebGpu, webgpu::pipeline::Kernel},
    error::Error,
};

fn next_read(gpu: &WebGpu) -> Error {
    let x = gpu.upload(&[1.0, 2.0], &[2]).unwrap();
    block_on(gpu.read(&gpu.add(&x, &x).unwrap())).unwrap_err()
}

#[test]
fn an_operation_that_is_not_valid_is_named() {
    let Some(gpu) = open(Options::default()) else { return };
    let x = gpu.upload(&[1.0, 2.0], &[2]).unwrap();
    // Four buffers belong to it.
    gpu.gpu.dispatch(Kernel::SiluMul, &[2], &[&x.data], [1, 1, 1]).unwrap();
    let error = next_read(&gpu);
    assert!(matches!(&error, Error::Backend(text) if text.contains("silu_mul")), "{error}");
}

#[test]
fn a_kernel_that_does_not_compile_is_named() {
    let Some(gpu) = open(Options::default()) else { return };
    let source = wgpu::ShaderSource::Wgsl("@compute fn main() { nonsense }".into());
    let made = || gpu.gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("x"), source });
    gpu.gpu.watched("the kernel of nonsense", made);
    let error = next_read(&gpu);
    assert!(
        matches!(&error, Error::Backend(text) if text.starts_with("expected the GPU to take the kernel of nonsense but")),
        "{error}"
    );
}

#[test]
fn a_lost_device_is_an_error_and_no_panic() {
    let Some(gpu) = open(Options::default()) else { return };
    let x = gpu.upload(&[1.0, 2.0], &[2]).unwrap();
    block_on(gpu.check()).unwrap();
    gpu.gpu.device.destroy();
    let error = next_read(&gpu);
    assert!(matches!(&error, Error::Backend(text) if text.starts_with("expected the GPU")), "{error}");
    // And it stays one.
    assert!(block_on(gpu.read(&x)).is_err() && block_on(gpu.check()).is_err());
}

#[test]
fn what_was_dropped_leaves_no_bind_groups_behind() {
    let Some(gpu) = open(Options::default()) else { return };
    let raw = super::matrix(1, crate::weights::Dtype::Q8_0, 8, 32).unwrap();
    let x = gpu.upload(&[1.0; 32], &[1, 32]).unwrap();
    let kept = |gpu: &WebGpu| gpu.gpu.recorder.borrow().kept();
    let before = {
        let w = gpu.upload_matrix(&raw).unwrap();
        block_on(gpu.read(&gpu.linear(&x, &w, None).unwrap())).unwrap();
        kept(&gpu)
    };
    block_on(gpu.read(&x)).unwrap();
    assert_eq!(kept(&gpu), before - 1);
}
