// f16 in pairs, unpacked without the device's own f16; a row ends with zeros up to a multiple of 8.

@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>; // (rows, octets)

fn octet(at: u32) -> Octet {
    let w = weights[at];
    return Octet(
        vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)),
        vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)),
    );
}
