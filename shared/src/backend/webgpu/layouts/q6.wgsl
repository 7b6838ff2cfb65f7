// A nibble an element, a word an octet; behind them a word of upper bits for each sixteen, half of it an octet's (two bits from
// 4 i on for element i of its first four, from 4 i + 2 on for the second's); behind those four f16 scales for each stripe, one for
// 16 elements: y = d (q - 32).

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, sixteens), (rows sixteens / 2), (rows sixteens / 4)

fn upper(at: u32) -> u32 {
    let i = 2u * sixteens_in_all() + at;
    return weights[i >> 1u][i & 1u];
}

// An octet, not yet scaled.
fn quants(w: u32, bits: u32) -> Octet {
    let mask = vec4<u32>(0x30u, 0x300u, 0x3000u, 0x30000u);
    let lo = four_widened(w, bits << 4u, mask, POWERS + 32.0);
    return Octet(lo, four_widened(w >> 16u, bits << 2u, mask, POWERS + 32.0));
}

// Those of its fours.
fn scales(at: u32) -> vec2<u32> {
    return weights[sixteens_in_all() / 2u * 3u + (at >> 2u)];
}

fn octet(at: u32, half: u32) -> Octet {
    let d = unpack2x16float(scales(at)[half]);
    let q = quants(weights[at][half], upper(at) >> (16u * half));
    return Octet(d.x * q.lo, d.y * q.hi);
}

fn sixteen_dot(at: u32, x: Sixteen) -> f32 {
    let w = weights[at];
    let u = upper(at);
    let s = scales(at);
    let d = vec4<f32>(unpack2x16float(s.x), unpack2x16float(s.y));
    let first = quants(w.x, u);
    let second = quants(w.y, u >> 16u);
    return dot(d, vec4<f32>(dot(first.lo, x[0]), dot(first.hi, x[1]), dot(second.lo, x[2]), dot(second.hi, x[3])));
}
