// Four bits an element; behind them an f16 scale for each 32: y = d (q - 8).

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets), (rows octets / 8)

fn scale(at: u32) -> f32 {
    let pair = unpack2x16float(weights[octets_in_all() + (at >> 3u)]);
    return select(pair.x, pair.y, (at & 4u) != 0u);
}

// The elements, not yet scaled.
fn quants(at: u32) -> Octet {
    let w = weights[at];
    return Octet(nibbles(w) - 8.0, nibbles(w >> 4u) - 8.0);
}
