// Queries rotated, keys rotated and put into the cache, values put there; one invocation a pair of elements.

struct Params {
    pairs: u32, // in all
    tokens: u32,
    heads: u32,
    groups: u32, // heads of keys, and of values
    halves: u32, // pairs of a head
    start: u32, // position of the first token
    interleaved: u32, // 0: pairs (i, i + halves); 1: pairs (2 i, 2 i + 1)
    capacity: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 8
@group(0) @binding(1) var<storage, read> x: array<f32>; // (batch, tokens, heads + 2 groups, 2 halves)
@group(0) @binding(2) var<storage, read> cos_table: array<f32>; // (positions, halves)
@group(0) @binding(3) var<storage, read> sin_table: array<f32>; // (positions, halves)
@group(0) @binding(4) var<storage, read_write> q: array<f32>; // (batch, tokens, heads, 2 halves)
@group(0) @binding(5) var<storage, read_write> keys: array<f32>; // (batch, groups, capacity, 2 halves)
@group(0) @binding(6) var<storage, read_write> values: array<f32>; // (batch, groups, capacity, 2 halves)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.pairs {
        return;
    }
    let pair = i % p.halves;
    let all = p.heads + 2u * p.groups;
    let head = i / p.halves % all;
    let token = i / p.halves / all % p.tokens;
    let batch = i / p.halves / all / p.tokens;
    let position = p.start + moved + token;
    let c = cos_table[position * p.halves + pair];
    let s = sin_table[position * p.halves + pair];
    // The two elements, inside of their head.
    var a = pair;
    var b = pair + p.halves;
    if p.interleaved == 1u {
        a = 2u * pair;
        b = a + 1u;
    }
    let width = 2u * p.halves;
    let origin = ((batch * p.tokens + token) * all + head) * width;
    let u = x[origin + a];
    let v = x[origin + b];
    if head < p.heads {
        let to = ((batch * p.tokens + token) * p.heads + head) * width;
        q[to + a] = u * c - v * s;
        q[to + b] = v * c + u * s;
    } else if head < p.heads + p.groups {
        let to = ((batch * p.groups + head - p.heads) * p.capacity + position) * width;
        keys[to + a] = u * c - v * s;
        keys[to + b] = v * c + u * s;
    } else {
        let to = ((batch * p.groups + head - p.heads - p.groups) * p.capacity + position) * width;
        values[to + a] = u;
        values[to + b] = v;
    }
}
