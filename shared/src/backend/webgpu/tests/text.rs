//! What can be said of kernels without a GPU.

use wgpu::naga::{
    front::wgsl,
    valid::{Capabilities, ValidationFlags, Validator},
};

use crate::backend::webgpu::{
    pipeline::{Kernel, storage_bindings},
    repack::Packing,
};

fn all() -> Vec<Kernel> {
    let mut kernels = vec![
        Kernel::Activation,
        Kernel::Add,
        Kernel::Argmax,
        Kernel::Attention,
        Kernel::AttentionJoin,
        Kernel::CacheAppend,
        Kernel::CacheGather,
        Kernel::Copy,
        Kernel::IndexRows,
        Kernel::L2Normalize,
        Kernel::LayerNorm,
        Kernel::Patchify,
        Kernel::RmsNorm,
        Kernel::Rope,
        Kernel::RopeAppend,
        Kernel::SiluMul,
        Kernel::TopK,
    ];
    for packing in Packing::ALL {
        kernels.extend([Kernel::Embedding(packing), Kernel::Matmul(packing), Kernel::Matvec(packing)]);
        kernels.extend([Kernel::MatvecGated(packing), Kernel::MatvecJoined(packing)]);
    }
    kernels
}

#[test]
fn every_module_is_valid_in_every_variant() {
    for kernel in all() {
        for (f16, subgroups) in [(false, false), (true, false), (false, true), (true, true)] {
            let source = kernel.source(f16, subgroups);
            let module = wgsl::parse_str(&source).unwrap_or_else(|e| {
                panic!("{kernel:?} f16 {f16} subgroups {subgroups}: {}", e.emit_to_string(&source))
            });
            // Without an ability, its use must not validate.
            let mut able = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            able.set(Capabilities::SHADER_FLOAT16, f16);
            able.set(Capabilities::SUBGROUP, subgroups);
            Validator::new(ValidationFlags::all(), able).validate(&module).unwrap_or_else(|e| {
                panic!("{kernel:?} f16 {f16} subgroups {subgroups}: {}", e.emit_to_string(&source))
            });
        }
    }
}

#[test]
fn every_binding_tells_its_shape_and_every_device_has_room_for_it() {
    for kernel in all() {
        let source = kernel.source(false, false);
        let bindings: Vec<&str> = source.lines().filter(|line| line.contains("@binding(")).collect();
        for line in &bindings {
            let comment = line.split_once("; // ").map(|(_, comment)| comment).unwrap_or_default();
            let shape = if line.contains("var<uniform>") {
                comment.parse::<u32>().is_ok()
            } else {
                comment.contains('(') || comment.starts_with("as ")
            };
            assert!(shape, "{kernel:?}: expected a shape at the end of `{line}`");
        }
        let storage = storage_bindings(&source);
        assert_eq!(storage.len() + 1, bindings.len(), "{kernel:?}: a binding that is not understood");
        assert!(storage.len() <= 8 && storage.iter().any(|(_, read_only)| !read_only), "{kernel:?}");
    }
}

#[test]
fn names_are_those_of_files() {
    for kernel in all() {
        assert!(kernel.source(false, false).contains("@compute"), "{}", kernel.name());
    }
}
