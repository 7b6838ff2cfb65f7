// Four bits an element; behind them scale and minimum for each 32, d and m as f16: y = d q + m.

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets), (rows octets / 4)

fn octet(at: u32) -> Octet {
    let w = weights[at];
    let s = unpack2x16float(weights[octets_in_all() + (at >> 2u)]);
    return Octet(s.x * nibbles(w) + s.y, s.x * nibbles(w >> 4u) + s.y);
}
