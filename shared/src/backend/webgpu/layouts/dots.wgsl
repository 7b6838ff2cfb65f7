
// Of four rows, at these octets.
fn octet_dots(at: vec4<u32>, lo: vec4<f32>, hi: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        octet_dot(at.x, lo, hi),
        octet_dot(at.y, lo, hi),
        octet_dot(at.z, lo, hi),
        octet_dot(at.w, lo, hi),
    );
}
