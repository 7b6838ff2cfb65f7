// Bytes q + 128 in order; behind them an f16 scale for each 32: y = d (q - 128).

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, octets), (rows octets / 16)

fn scale(at: u32) -> f32 {
    let two = weights[octets_in_all() + (at >> 4u)];
    let pair = unpack2x16float(select(two.x, two.y, (at & 8u) != 0u));
    return select(pair.x, pair.y, (at & 4u) != 0u);
}

// The elements, not yet scaled.
fn quants(at: u32) -> Octet {
    let w = weights[at];
    return Octet(bytes(w.x) - 128.0, bytes(w.y) - 128.0);
}
