// What `attention.wgsl` and `attention_of_one.wgsl` are given; the latter has one query of a sequence, which sees every key.

struct Params {
    tokens: u32,    // queries of a sequence
    seen: u32,      // keys of a sequence
    first: u32,     // position of the first query
    causal: u32,    // 1: a query sees keys up to its position
    heads: u32,     // of queries
    groups: u32,    // heads of keys and values
    width: u32,     // vectors of a head
    by_batch: u32,  // vectors from sequence to sequence of keys
    by_token: u32,  // from key to key
    by_group: u32,  // from head to head
    chunks: u32,    // that the keys are cut into
    apart: u32,     // from a key to its value, where both lie in one buffer
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params; // 13
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // (batch, tokens, heads, width)
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; // (batch, seen, groups, width) by the strides
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; // as k
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>; // (batch, tokens, heads, width); for chunks (batch, groups, rows, chunks, width + 1)

const LOWEST = -3.4e38;
