// Blocks of 32: four words of nibbles and one of fifth bits (bit i for element i); behind them scale and minimum for
// each block, d and m as f16: y = d q + m.

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets / 4, 5), (rows octets / 4)

fn octet(at: u32) -> Octet {
    let block = at >> 2u;
    let part = at & 3u;
    let w = weights[block * 5u + part];
    let fifth = weights[block * 5u + 4u] >> (8u * part);
    let s = unpack2x16float(weights[octets_in_all() / 4u * 5u + block]);
    let lo = nibbles(w) + 16.0 * vec4<f32>((vec4<u32>(fifth) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u));
    let hi = nibbles(w >> 4u) + 16.0 * vec4<f32>((vec4<u32>(fifth) >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(1u));
    return Octet(s.x * lo + s.y, s.x * hi + s.y);
}
