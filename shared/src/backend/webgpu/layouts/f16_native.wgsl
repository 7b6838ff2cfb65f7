// f16 as the device's own.

@group(0) @binding(3) var<storage, read> weights: array<vec4<f16>>; // (rows, sixteens, 4)

fn octet(at: u32, half: u32) -> Octet {
    let four = first_four(at) + 8u * half;
    return Octet(vec4<f32>(weights[four]), vec4<f32>(weights[four + 4u]));
}
