// f32 as it is; a row ends with zeros up to a multiple of 8.

@group(0) @binding(3) var<storage, read> weights: array<vec4<f32>>; // (rows, octets, 2)

fn octet(at: u32) -> Octet {
    return Octet(weights[2u * at], weights[2u * at + 1u]);
}
