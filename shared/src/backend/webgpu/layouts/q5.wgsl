// A nibble an element, a word an octet; behind them half a word of fifth bits for each sixteen (bit 4 i + j for element i of its
// four j), and behind those two pairs of scale and minimum for each stripe, d and m as f16: y = d q + m.

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, sixteens), twice (rows sixteens / 4)

fn fifths(at: u32) -> u32 {
    let i = 2u * sixteens_in_all() + (at >> 1u);
    return weights[i >> 1u][i & 1u] >> (16u * (at & 1u));
}

fn scaled(pair: u32, w: u32, bits: u32) -> Octet {
    let s = unpack2x16float(pair);
    let mask = vec4<u32>(0x10u, 0x100u, 0x1000u, 0x10000u);
    let lo = four_widened(w, bits << 4u, mask, POWERS);
    return shifted(s.x, s.y, Octet(lo, four_widened(w >> 16u, bits << 3u, mask, POWERS)));
}

fn pairs(at: u32) -> vec2<u32> {
    return weights[sixteens_in_all() / 4u * 5u + (at >> 2u)];
}

fn octet(at: u32, half: u32) -> Octet {
    return scaled(pairs(at)[half], weights[at][half], fifths(at) >> (2u * half));
}

fn sixteen_dot(at: u32, x: Sixteen) -> f32 {
    let w = weights[at];
    let f = fifths(at);
    let s = pairs(at);
    return octet_dot(scaled(s.x, w.x, f), x[0], x[1]) + octet_dot(scaled(s.y, w.y, f >> 2u), x[2], x[3]);
}
