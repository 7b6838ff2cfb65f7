// f16 in pairs, unpacked without the device's own f16.

@group(0) @binding(3) var<storage, read> weights: array<vec2<u32>>; // (rows, sixteens, 4)

fn unpacked(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn octet(at: u32, half: u32) -> Octet {
    let four = first_four(at) + 8u * half;
    return Octet(unpacked(weights[four]), unpacked(weights[four + 4u]));
}
