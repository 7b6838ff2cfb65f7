// A nibble an element, a word an octet; behind them two f16 scales for each stripe: y = d (q - 8).

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, sixteens), (rows sixteens / 8)

fn scales(at: u32) -> vec2<f32> {
    let i = 2u * sixteens_in_all() + (at >> 2u);
    return unpack2x16float(weights[i >> 1u][i & 1u]);
}

fn octet(at: u32, half: u32) -> Octet {
    let q = nibbles(weights[at][half], POWERS + 8.0);
    let d = scales(at)[half];
    return Octet(d * q.lo, d * q.hi);
}

fn sixteen_dot(at: u32, x: Sixteen) -> f32 {
    let w = weights[at];
    let d = scales(at);
    let first = d.x * octet_dot(nibbles(w.x, POWERS + 8.0), x[0], x[1]);
    return first + d.y * octet_dot(nibbles(w.y, POWERS + 8.0), x[2], x[3]);
}
