
// Of four rows, at these places.
fn sixteen_dots(at: vec4<u32>, x: Sixteen) -> vec4<f32> {
    return vec4<f32>(sixteen_dot(at.x, x), sixteen_dot(at.y, x), sixteen_dot(at.z, x), sixteen_dot(at.w, x));
}
