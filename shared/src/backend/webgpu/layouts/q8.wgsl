// A byte q + 128 an element, a word a four; behind them two f16 scales for each stripe: y = d q.

@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>; // (rows, sixteens), (rows sixteens / 16)

fn scales(at: u32) -> vec2<f32> {
    let i = 4u * sixteens_in_all() + (at >> 2u);
    return unpack2x16float(weights[i >> 2u][i & 3u]);
}

fn octet(at: u32, half: u32) -> Octet {
    let w = weights[at];
    let two = select(w.xy, w.zw, half == 1u);
    let d = scales(at)[half];
    return Octet(d * bytes(two.x), d * bytes(two.y));
}

fn sixteen_dot(at: u32, x: Sixteen) -> f32 {
    let w = weights[at];
    let d = scales(at);
    let first = d.x * octet_dot(Octet(bytes(w.x), bytes(w.y)), x[0], x[1]);
    return first + d.y * octet_dot(Octet(bytes(w.z), bytes(w.w)), x[2], x[3]);
}
