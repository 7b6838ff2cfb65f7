// Sixteen `i` of row n of x, with zeros past its end.
fn sixteen_of_x(n: u32, i: u32) -> Sixteen {
    let fours = first_four(i) + vec4<u32>(0u, 4u, 8u, 12u);
    let at = vec4<u32>(n * p.fours) + min(fours, vec4<u32>(p.fours - 1u));
    let there = fours < vec4<u32>(p.fours);
    return Sixteen(
        select(vec4<f32>(), x[at.x], there.x),
        select(vec4<f32>(), x[at.y], there.y),
        select(vec4<f32>(), x[at.z], there.z),
        select(vec4<f32>(), x[at.w], there.w),
    );
}
