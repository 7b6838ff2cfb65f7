// Keys and values of new tokens into their places; one invocation an element.

struct Params {
    n: u32, // elements of k
    tokens: u32,
    groups: u32,
    width: u32, // elements of a head
    start: u32, // place of the first token
    capacity: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 6
@group(0) @binding(1) var<storage, read> k: array<f32>; // (batch, tokens, groups, width)
@group(0) @binding(2) var<storage, read> v: array<f32>; // (batch, tokens, groups, width)
@group(0) @binding(3) var<storage, read_write> cache: array<f32>; // (batch, 2 groups, capacity, width)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    let group = i / p.width % p.groups;
    let token = i / p.width / p.groups % p.tokens;
    let batch = i / p.width / p.groups / p.tokens;
    let to = ((batch * 2u * p.groups + group) * p.capacity + p.start + moved + token) * p.width + i % p.width;
    cache[to] = k[i];
    cache[to + p.groups * p.capacity * p.width] = v[i];
}
