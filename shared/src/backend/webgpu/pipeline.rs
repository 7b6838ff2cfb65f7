//! Kernels put together from their parts, and compiled once each.

use std::{collections::HashMap, rc::Rc};

use super::{
    device::{Adapter, BROWSER, Gpu},
    repack::Packing,
};
use crate::error::Result;

/// Of `kernels/moved.wgsl`.
pub(super) const MOVED_BINDING: u32 = 7;

/// A kernel. Those that read weights are made for each packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Activation,
    Add,
    Argmax,
    Attention,
    AttentionOfOne,
    /// By smaller workgroups, for there are few keys.
    AttentionOfOneToFew,
    AttentionJoin,
    CacheAppend,
    CacheGather,
    Copy,
    Embedding(Packing),
    IndexRows,
    L2Normalize,
    LayerNorm,
    Matmul(Packing),
    Matvec(Packing),
    MatvecGated(Packing),
    /// Of one matrix each: Q4_K_M and the like give values more bits than queries and keys.
    MatvecJoined([Packing; 3]),
    Patchify,
    RmsNorm,
    /// By larger workgroups, for there are not many that share the GPU.
    RmsNormOfFew,
    Rope,
    SiluMul,
    TopK,
}

/// Parts that kernels share.
const INVOCATION: &str = include_str!("kernels/invocation.wgsl");
const INVOCATION_SUBGROUPS: &str = include_str!("kernels/invocation_subgroups.wgsl");
const GRID: &str = include_str!("kernels/grid.wgsl");
const SUM: &str = include_str!("kernels/sum.wgsl");
const SUM_SUBGROUPS: &str = include_str!("kernels/sum_subgroups.wgsl");
const SUMS: &str = include_str!("kernels/sums.wgsl");
const SUMS_SUBGROUPS: &str = include_str!("kernels/sums_subgroups.wgsl");
const SIXTEEN_OF_X: &str = include_str!("kernels/sixteen_of_x.wgsl");
const NORMED: &str = include_str!("kernels/normed.wgsl");
const ROW_SUMS: &str = include_str!("kernels/row_sums.wgsl");
const FOUR_OF_ROW: &str = include_str!("kernels/four_of_row.wgsl");
const ATTENTION_INPUTS: &str = include_str!("kernels/attention_inputs.wgsl");
const ACTIVATE: &str = include_str!("kernels/activate.wgsl");
pub(super) const MOVED: &str = include_str!("kernels/moved.wgsl");
const OCTET: &str = include_str!("layouts/octet.wgsl");

impl Kernel {
    /// Its name in messages, and of its file.
    pub fn name(self) -> &'static str {
        self.parts().0
    }

    /// Name, own text, and whether it sums over a workgroup.
    fn parts(self) -> (&'static str, &'static str, bool) {
        macro_rules! own {
            ($name:literal, $sums:literal) => {
                ($name, include_str!(concat!("kernels/", $name, ".wgsl")), $sums)
            };
        }
        match self {
            Kernel::Activation => own!("activation", false),
            Kernel::Add => own!("add", false),
            Kernel::Argmax => own!("argmax", false),
            Kernel::Attention => own!("attention", false),
            Kernel::AttentionOfOne | Kernel::AttentionOfOneToFew => own!("attention_of_one", false),
            Kernel::AttentionJoin => own!("attention_join", false),
            Kernel::CacheAppend => own!("cache_append", false),
            Kernel::CacheGather => own!("cache_gather", false),
            Kernel::Copy => own!("copy", false),
            Kernel::Embedding(_) => own!("embedding", false),
            Kernel::IndexRows => own!("index_rows", false),
            Kernel::L2Normalize => own!("l2_normalize", true),
            Kernel::LayerNorm => own!("layer_norm", true),
            Kernel::Matmul(_) => own!("matmul", false),
            Kernel::Matvec(_) => own!("matvec", true),
            Kernel::MatvecGated(_) => own!("matvec_gated", true),
            Kernel::MatvecJoined(_) => own!("matvec_joined", true),
            Kernel::Patchify => own!("patchify", false),
            Kernel::RmsNorm | Kernel::RmsNormOfFew => own!("rms_norm", true),
            Kernel::Rope => own!("rope", false),
            Kernel::SiluMul => own!("silu_mul", false),
            Kernel::TopK => own!("top_k", false),
        }
    }

    /// How the matrices lie that it reads.
    fn matrices(self) -> Vec<Packing> {
        match self {
            Kernel::Embedding(packing) | Kernel::Matmul(packing) | Kernel::Matvec(packing) => vec![packing],
            Kernel::MatvecGated(packing) => vec![packing; 2],
            Kernel::MatvecJoined(packings) => packings.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Its whole text for a device with or without f16 and subgroups.
    pub fn source(self, f16: bool, subgroups: bool) -> String {
        let (_, own, sums) = self.parts();
        let subgroups = subgroups && sums;
        let mut parts = vec![if subgroups { INVOCATION_SUBGROUPS } else { INVOCATION }.to_string(), GRID.to_string()];
        if sums {
            let several = own.contains("workgroup_sums(");
            let sum = match subgroups {
                true if several => SUMS_SUBGROUPS,
                true => SUM_SUBGROUPS,
                false if several => SUMS,
                false => SUM,
            };
            parts.push(sum.to_string());
        }
        let matrices = self.matrices();
        if !matrices.is_empty() {
            parts.push(OCTET.to_string());
        }
        match matrices[..] {
            [packing] => parts.push(packing.source(f16).to_string()),
            _ => parts.extend((0..).zip(&matrices).map(|(i, packing)| numbered(packing.source(f16), i))),
        }
        let of_normed = matches!(self, Kernel::MatvecGated(_) | Kernel::MatvecJoined(_));
        if of_normed {
            parts.push(NORMED.to_string());
        }
        if of_normed || matches!(self, Kernel::Matvec(_)) {
            parts.push(SIXTEEN_OF_X.to_string());
        }
        if own.contains("row_sums_0(") {
            parts.extend((0..).zip(&matrices).map(|(i, _)| numbered(ROW_SUMS, i)));
        }
        if f16 && matrices.contains(&Packing::F16) {
            parts.insert(0, "enable f16;".to_string());
        }
        if matches!(self, Kernel::Attention | Kernel::AttentionOfOne | Kernel::AttentionOfOneToFew) {
            parts.push(ATTENTION_INPUTS.to_string());
        }
        if own.contains("activate(") {
            parts.push(ACTIVATE.to_string());
        }
        if own.contains("four_of_row(") {
            parts.push(FOUR_OF_ROW.to_string());
        }
        if own.contains("moved") {
            parts.push(MOVED.to_string());
        }
        let own = match self {
            Kernel::AttentionOfOneToFew => own.replace("const LANES = 256u;", "const LANES = 64u;"),
            Kernel::RmsNormOfFew => own.replace("const LANES = 64u;", "const LANES = 256u;"),
            _ => own.to_string(),
        };
        parts.push(own);
        parts.join("\n")
    }
}

/// The reader of a packing, or what is made of it, for matrix `i` of several: `sixteen_dots_i` and so on, on a binding of its own.
fn numbered(reader: &str, i: u32) -> String {
    let functions = [
        "octet(",
        "octet_dots(",
        "sixteen_dot(",
        "sixteen_dots(",
        "sixteens_in_all(",
        "unpacked(",
        "quants(",
        "fifths(",
        "upper(",
        "pairs(",
        "scales(",
        "scaled(",
        "row_sums(",
    ];
    let reader = functions.iter().fold(reader.to_string(), |reader, function| {
        reader.replace(function, &format!("{}_{i}(", function.trim_end_matches('(')))
    });
    reader.replace("weights", &format!("weights_{i}")).replace("@binding(3)", &format!("@binding({})", 3 + i))
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Numbers of its storage bindings, in order.
    pub bindings: Vec<u32>,
    /// Whether it goes by `moved`, too.
    pub moves: bool,
}

/// All kernels that were asked for so far.
pub(super) struct Pipelines {
    f16: bool,
    subgroups: bool,
    made: HashMap<Kernel, Rc<Pipeline>>,
}

impl Pipelines {
    pub fn new(adapter: &Adapter) -> Self {
        Pipelines { f16: adapter.shader_f16, subgroups: adapter.subgroups, made: HashMap::new() }
    }

    /// Kernels that were asked for.
    #[cfg(test)]
    pub fn made(&self) -> std::collections::HashSet<Kernel> {
        self.made.keys().copied().collect()
    }

    pub fn get(&mut self, gpu: &Gpu, kernel: Kernel) -> Result<Rc<Pipeline>> {
        if let Some(made) = self.made.get(&kernel) {
            return Ok(Rc::clone(made));
        }
        let mut source = kernel.source(self.f16, self.subgroups);
        // Browsers want to be told; naga does not know the line.
        if BROWSER && source.contains("subgroupAdd") {
            source.insert_str(0, "enable subgroups;\n");
        }
        // What the device refuses here, or when it first runs it, is told by its name.
        let made = Rc::new(gpu.watched(kernel.name(), || compile(&gpu.device, kernel, &source)));
        gpu.first.borrow_mut().push(kernel.name());
        self.made.insert(kernel, Rc::clone(&made));
        Ok(made)
    }
}

fn compile(device: &wgpu::Device, kernel: Kernel, source: &str) -> Pipeline {
    let label = Some(kernel.name());
    let module = device
        .create_shader_module(wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) });
    let storage = storage_bindings(source);
    let entry = |binding: u32, ty: wgpu::BufferBindingType, has_dynamic_offset: bool| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
    entries.extend(
        storage
            .iter()
            .map(|&(binding, read_only)| entry(binding, wgpu::BufferBindingType::Storage { read_only }, false)),
    );
    let moves = source.contains(MOVED);
    if moves {
        entries.push(entry(MOVED_BINDING, wgpu::BufferBindingType::Uniform, false));
    }
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // Every kernel writes workgroup memory before it reads it, but for one flag.
            zero_initialize_workgroup_memory: kernel == Kernel::Argmax,
            ..wgpu::PipelineCompilationOptions::default()
        },
        cache: None,
    });
    Pipeline { pipeline, layout, bindings: storage.into_iter().map(|(binding, _)| binding).collect(), moves }
}

/// Number of each storage binding and whether it is only read, by number: the text is the one place that says it.
pub(super) fn storage_bindings(source: &str) -> Vec<(u32, bool)> {
    let mut found: Vec<(u32, bool)> = source
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.strip_prefix("@group(0) @binding(")?.split_once(')')?;
            let kind = rest.trim_start().strip_prefix("var<storage, ")?;
            Some((number.parse().ok()?, !kind.starts_with("read_write")))
        })
        .collect();
    found.sort_unstable();
    found
}
