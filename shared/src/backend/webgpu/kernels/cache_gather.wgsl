// The first tokens of each sequence from another sequence of the batch; one invocation an element.

struct Params {
    n: u32, // elements of y
    groups: u32, // heads of keys and of values
    width: u32, // elements of a head
    len: u32, // tokens
    capacity: u32,
    back: u32, // 0: from the cache to a copy in its new order; 1: the copy back
}

@group(0) @binding(0) var<uniform> p: Params; // 6
@group(0) @binding(1) var<storage, read> x: array<f32>; // (batch, groups, capacity or len, width)
@group(0) @binding(2) var<storage, read> rows: array<u32>; // (batch)
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // (batch, groups, len or capacity, width)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    let inner = i % (p.len * p.width);
    let group = i / (p.len * p.width) % p.groups;
    let batch = i / (p.len * p.width) / p.groups;
    if p.back == 1u {
        y[(batch * p.groups + group) * p.capacity * p.width + inner] = x[i];
    } else {
        y[i] = x[(rows[batch] * p.groups + group) * p.capacity * p.width + inner];
    }
}
