// Four elements of a row of x, LANES apart, zeros past its end: a GPU waits for all four at once.

fn four_of_row(first: u32, i: u32) -> vec4<f32> {
    let at = vec4<u32>(i) + LANES * vec4<u32>(0u, 1u, 2u, 3u);
    let to = vec4<u32>(first) + min(at, vec4<u32>(p.width - 1u));
    return select(vec4<f32>(), vec4<f32>(x[to.x], x[to.y], x[to.z], x[to.w]), at < vec4<u32>(p.width));
}
