// Rotates the pairs of each head by its token's position; one invocation a pair.

struct Params {
    pairs: u32, // in all
    tokens: u32,
    heads: u32,
    halves: u32, // pairs of a head
    start: u32, // position of the first token
    interleaved: u32, // 0: pairs (i, i + half); 1: pairs (2 i, 2 i + 1)
    positions: u32, // of the table
}

@group(0) @binding(0) var<uniform> p: Params; // 7
@group(0) @binding(1) var<storage, read> x: array<f32>; // (batch, tokens, heads, 2 half)
@group(0) @binding(2) var<storage, read> table: array<f32>; // (2, positions, half), cosines and sines
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // (batch, tokens, heads, 2 half)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.pairs {
        return;
    }
    let pair = i % p.halves;
    let head = i / p.halves;
    let position = p.start + moved + head / p.heads % p.tokens;
    let c = table[position * p.halves + pair];
    let s = table[(p.positions + position) * p.halves + pair];
    var a = 2u * p.halves * head + pair;
    var b = a + p.halves;
    if p.interleaved == 1u {
        a += pair;
        b = a + 1u;
    }
    let u = x[a];
    let v = x[b];
    y[a] = u * c - v * s;
    y[b] = v * c + u * s;
}
