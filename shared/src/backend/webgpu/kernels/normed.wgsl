// Sixteen `i` of row n of x on its way through an RMS norm, not yet divided.
struct Normed {
    values: Sixteen,
    squares: f32,
}

fn normed(n: u32, i: u32) -> Normed {
    let of_x = sixteen_of_x(n, i);
    let fours = min(first_four(i) + vec4<u32>(0u, 4u, 8u, 12u), vec4<u32>(p.fours - 1u));
    let squares = dot(of_x[0], of_x[0]) + dot(of_x[1], of_x[1]) + dot(of_x[2], of_x[2]) + dot(of_x[3], of_x[3]);
    return Normed(
        Sixteen(
            of_x[0] * norm[fours.x],
            of_x[1] * norm[fours.y],
            of_x[2] * norm[fours.z],
            of_x[3] * norm[fours.w],
        ),
        squares,
    );
}
