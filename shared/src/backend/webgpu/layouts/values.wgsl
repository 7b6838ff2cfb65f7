
// Of a layout that has nothing to read beside its octets: one octet of all four rows, then the other.

fn octet_dots(at: vec4<u32>, half: u32, lo: vec4<f32>, hi: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        octet_dot(octet(at.x, half), lo, hi),
        octet_dot(octet(at.y, half), lo, hi),
        octet_dot(octet(at.z, half), lo, hi),
        octet_dot(octet(at.w, half), lo, hi),
    );
}

fn sixteen_dots(at: vec4<u32>, x: Sixteen) -> vec4<f32> {
    return octet_dots(at, 0u, x[0], x[1]) + octet_dots(at, 1u, x[2], x[3]);
}
