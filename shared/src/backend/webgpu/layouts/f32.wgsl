// f32 as it is.

@group(0) @binding(3) var<storage, read> weights: array<vec4<f32>>; // (rows, sixteens, 4)

fn octet(at: u32, half: u32) -> Octet {
    let four = first_four(at) + 8u * half;
    return Octet(weights[four], weights[four + 4u]);
}
