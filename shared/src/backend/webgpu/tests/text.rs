//! What can be said of kernels without a GPU.

use wgpu::naga::{
    front::wgsl,
    valid::{Capabilities, ValidationFlags, Validator},
};

use crate::backend::webgpu::{
    pipeline::{Kernel, MOVED, storage_bindings},
    repack::Packing,
};

/// Devices with and without f16 and subgroups.
const VARIANTS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// Lists all kernels. A variant of [`Kernel`] that is not named here does not compile.
macro_rules! kernels {
    (plain: $($plain:ident),*; of_a_packing: $($packed:ident),*; of_three: $($joined:ident),* $(;)?) => {
        pub(super) fn all() -> Vec<Kernel> {
            fn _named(kernel: Kernel) {
                match kernel {
                    $(Kernel::$plain => (),)*
                    $(Kernel::$packed(_) => (),)*
                    $(Kernel::$joined(_) => (),)*
                }
            }
            let mut kernels = vec![$(Kernel::$plain),*];
            for first in Packing::ALL {
                $(kernels.push(Kernel::$packed(first));)*
                for second in Packing::ALL {
                    for third in Packing::ALL {
                        $(kernels.push(Kernel::$joined([first, second, third]));)*
                    }
                }
            }
            kernels
        }
    };
}

kernels! {
    plain: Activation, Add, Argmax, Attention, AttentionOfOne, AttentionOfOneToFew, AttentionJoin, CacheAppend, CacheGather, Copy, IndexRows, L2Normalize,
        LayerNorm, Patchify, RmsNorm, RmsNormOfFew, Rope, SiluMul, TopK;
    of_a_packing: Embedding, Matmul, Matvec, MatvecGated;
    of_three: MatvecJoined;
}

/// Every kernel's text in every variant, and what to call it.
fn texts() -> impl Iterator<Item = (String, Kernel, (bool, bool), String)> {
    let of = |kernel: Kernel| {
        VARIANTS.map(|(f16, subgroups)| {
            let name = format!("{kernel:?} f16 {f16} subgroups {subgroups}");
            (name, kernel, (f16, subgroups), kernel.source(f16, subgroups))
        })
    };
    all().into_iter().flat_map(of)
}

#[test]
fn every_packing_is_listed() {
    for packing in Packing::ALL {
        // A packing that is added does not compile until it has a place, here and in the list.
        let place = match packing {
            Packing::F32 => 0,
            Packing::F16 => 1,
            Packing::Q8 => 2,
            Packing::Q4Sym => 3,
            Packing::Q4 => 4,
            Packing::Q5 => 5,
            Packing::Q6 => 6,
        };
        assert_eq!(Packing::ALL[place], packing);
    }
}

#[test]
fn every_module_is_valid_in_every_variant() {
    for (name, _, (f16, subgroups), source) in texts() {
        let module = wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        // Without an ability, its use must not validate.
        let mut able = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        able.set(Capabilities::SHADER_FLOAT16, f16);
        able.set(Capabilities::SUBGROUP, subgroups);
        Validator::new(ValidationFlags::all(), able)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
    }
}

#[test]
fn every_binding_tells_its_shape_and_every_device_has_room_for_it() {
    for (name, _, _, source) in texts() {
        let bindings: Vec<&str> = source.lines().filter(|line| line.contains("@binding(")).collect();
        for line in &bindings {
            let comment = line.split_once("; // ").map(|(_, comment)| comment).unwrap_or_default();
            let shape = if line.contains("var<uniform>") {
                comment.parse::<u32>().is_ok()
            } else {
                comment.contains('(') || comment.starts_with("as ")
            };
            assert!(shape, "{name}: expected a shape at the end of `{line}`");
        }
        let storage = storage_bindings(&source);
        let uniforms = 1 + usize::from(source.contains(MOVED));
        assert_eq!(storage.len() + uniforms, bindings.len(), "{name}: a binding that is not understood");
        assert!(storage.windows(2).all(|pair| pair[0].0 < pair[1].0), "{name}: {storage:?}");
        assert!(storage.len() <= 8 && storage.iter().any(|(_, read_only)| !read_only), "{name}");
    }
}

#[test]
fn names_are_those_of_files() {
    for (name, kernel, _, source) in texts() {
        assert!(source.contains("@compute") && !kernel.name().is_empty(), "{name}");
    }
}
