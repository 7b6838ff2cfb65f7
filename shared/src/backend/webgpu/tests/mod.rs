//! Kernels without a GPU, then every operation on one against the CPU.

mod faults;
mod text;

use std::io::Write;

use pollster::block_on;

use super::{
    Options, WebGpu,
    check::{GROUPS, MIXTURES, OF_EACH_PACKING, check, matrix, values},
    pipeline::Kernel,
    repack::Packing,
};
use crate::{
    backend::{Backend, Mask},
    weights::Dtype,
};

/// The abilities of a GPU that kernels have variants for: all, none, and each alone, one of them with bindings and grids so
/// small that matrices are split and grids have lines.
const VARIANTS: [Options; 4] = [
    Options { shader_f16: true, subgroups: true, max_binding: None, max_groups: None, max_memory: None },
    Options { shader_f16: false, subgroups: false, max_binding: None, max_groups: None, max_memory: None },
    Options { shader_f16: false, subgroups: true, max_binding: Some(1 << 14), max_groups: Some(3), max_memory: None },
    Options { shader_f16: true, subgroups: false, max_binding: None, max_groups: None, max_memory: None },
];

/// A device whose outputs are poisoned and have sentinels behind them. `None` where there is no GPU, with a visible
/// line; with `CI=true` that is a failure.
fn open(options: Options) -> Option<WebGpu> {
    match block_on(WebGpu::open(options)) {
        Ok(gpu) => {
            gpu.gpu.memory.guard.set(256);
            // Without them the test would be that of another variant.
            let (wanted, given) = ((options.shader_f16, options.subgroups), gpu.adapter());
            let given = (given.shader_f16, given.subgroups);
            assert!(given == wanted || !in_ci(), "expected f16 and subgroups to be {wanted:?} but found {given:?}");
            Some(gpu)
        }
        Err(error) => {
            assert!(!in_ci(), "{error}\nCI must not skip: install mesa-vulkan-drivers");
            // Past the capture of libtest: `cargo xtask test` counts such lines.
            writeln!(std::io::stdout(), "SKIPPED: {error} (install mesa-vulkan-drivers)").unwrap();
            None
        }
    }
}

fn in_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

/// A test for each group of operations, on every variant of a device.
macro_rules! on_every_variant {
    ($($name:ident),* $(,)?) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            for (variant, gpu) in VARIANTS.into_iter().filter_map(|options| Some((options, open(options)?))) {
                block_on(check(&gpu, stringify!($name))).unwrap_or_else(|error| panic!("{variant:?}: {error}"));
            }
        })*
    };
}

on_every_variant! {
    shapes,
    elements,
    norms,
    rotations,
    attention_at_hand,
    attention_over_a_cache,
    products_of_every_type,
    rows_of_every_type,
    infinities_and_what_is_no_number_come_through,
    elements_that_are_not_finite,
    rows_that_are_not_finite,
    attention_over_what_is_not_finite,
    quantised_products_of_what_is_not_finite,
    products_with_something_after,
    gated_products,
    self_attention_over_a_cache,
    many_operations_in_one_submission,
    rows_that_were_chosen_there,
    the_largest_of_a_row,
    the_first_of_many,
    steps_that_are_replayed,
}

#[test]
fn no_group_of_operations_is_left_out() {
    assert_eq!(TESTED, GROUPS);
}

/// Every kernel in every packing; of those that join three matrices the uniform ones and the mixtures.
#[test]
fn no_kernel_is_left_out() {
    assert_eq!(OF_EACH_PACKING.map(Packing::of), Packing::ALL);
    let Some(gpu) = open(Options::default()) else { return };
    for group in GROUPS {
        block_on(check(&gpu, group)).unwrap();
    }
    let compared = gpu.gpu.pipelines.borrow().made();
    let mixtures = MIXTURES.map(|types| types.map(Packing::of));
    let wanted = |kernel: &Kernel| match kernel {
        Kernel::MatvecJoined(packings) => packings.iter().all(|p| *p == packings[0]) || mixtures.contains(packings),
        _ => true,
    };
    let forgotten: Vec<Kernel> = text::all().into_iter().filter(wanted).filter(|k| !compared.contains(k)).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}

/// More workgroups than one dimension of a grid has, by the device's own bound.
#[test]
fn large_grids() {
    let Some(gpu) = open(Options::default()) else { return };
    let n = 64 * 65_535 + 100;
    let x: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let x = gpu.upload(&x, &[n]).unwrap();
    let y = block_on(values(&gpu, &gpu.add(&x, &x).unwrap())).unwrap();
    assert!(y.iter().enumerate().all(|(i, &y)| y == (i % 1000 * 2) as f32));
}

#[test]
fn a_matrix_wider_than_a_binding_is_refused() {
    let Some(gpu) = open(VARIANTS[2]) else { return };
    let raw = matrix(1, Dtype::F32, 1, 8192).unwrap();
    let error = gpu.upload_matrix(&raw).err().unwrap().to_string();
    assert!(error.contains("expected rows of at most 16384 bytes but found 32768"), "{error}");
}

/// Where a dimension means something, there is no second line to go on in.
#[test]
fn a_dimension_that_is_too_long_is_refused() {
    let Some(gpu) = open(Options::default()) else { return };
    let most = gpu.gpu.max_groups as usize;
    let refused = |error: crate::Error, groups: [usize; 3]| {
        let said = format!("expected at most {most} workgroups in each dimension but found {groups:?}\n");
        assert!(error.to_string().contains(&said), "{error}");
    };
    let one_each = |n: usize| gpu.upload(&vec![1.0; 4 * n], &[n, 1, 1, 4]).unwrap();
    let q = one_each(most + 1);
    refused(gpu.attention(&q, &q, &q, Mask::None).err().unwrap(), [1, most + 1, 1]);
    let q = one_each(most);
    assert!(block_on(gpu.read(&gpu.attention(&q, &q, &q, Mask::None).unwrap())).unwrap().iter().all(|&v| v == 1.0));
    let w = gpu.upload_matrix(&matrix(1, Dtype::F32, 1, 1).unwrap()).unwrap();
    let x = gpu.upload(&vec![1.0; 16 * most + 1], &[16 * most + 1, 1]).unwrap();
    refused(gpu.linear(&x, &w, None).err().unwrap(), [1, most + 1, 1]);
}
