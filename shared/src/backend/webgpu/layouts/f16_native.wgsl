// f16 as the device's own; a row ends with zeros up to a multiple of 8.

@group(0) @binding(3) var<storage, read> weights: array<vec4<f16>>; // (rows, octets, 2)

fn octet(at: u32) -> Octet {
    return Octet(vec4<f32>(weights[2u * at]), vec4<f32>(weights[2u * at + 1u]));
}
