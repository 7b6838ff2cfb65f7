// A nibble an element, a word an octet; behind them two pairs of scale and minimum for each stripe, d and m as f16:
// y = d q + m.

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, sixteens), (rows sixteens / 4)

fn scaled(pair: u32, w: u32) -> Octet {
    let s = unpack2x16float(pair);
    return shifted(s.x, s.y, nibbles(w, POWERS));
}

fn octet(at: u32, half: u32) -> Octet {
    return scaled(weights[sixteens_in_all() + (at >> 2u)][half], weights[at][half]);
}

fn sixteen_dot(at: u32, x: Sixteen) -> f32 {
    let w = weights[at];
    let s = weights[sixteens_in_all() + (at >> 2u)];
    return octet_dot(scaled(s.x, w.x), x[0], x[1]) + octet_dot(scaled(s.y, w.y), x[2], x[3]);
}
