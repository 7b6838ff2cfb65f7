// Blocks of 32: four words of nibbles and two of upper bits (two for each element, in order); behind
// them an f16 scale for each half of a block: y = d (q - 32).

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets / 4, 6), (rows octets / 4)

// The elements, not yet scaled.
fn quants(at: u32) -> Octet {
    let block = at >> 2u;
    let part = at & 3u;
    let w = weights[block * 6u + part];
    let upper = weights[block * 6u + 4u + (part >> 1u)] >> (16u * (part & 1u));
    return Octet(
        nibbles(w) + 16.0 * vec4<f32>((vec4<u32>(upper) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u)) - 32.0,
        nibbles(w >> 4u) + 16.0 * vec4<f32>((vec4<u32>(upper) >> vec4<u32>(8u, 10u, 12u, 14u)) & vec4<u32>(3u)) - 32.0,
    );
}

fn scale(at: u32) -> f32 {
    let pair = unpack2x16float(weights[octets_in_all() / 4u * 6u + (at >> 2u)]);
    return select(pair.x, pair.y, (at & 2u) != 0u);
}
