// Sixteen `i` of row n of x on its way through an RMS norm, not yet divided.
struct Normed {
    values: Sixteen,
    squares: f32,
}

fn normed(n: u32, i: u32) -> Normed {
    let of_x = sixteen_of_x(n, i);
    let four = first_four(i);
    let squares = dot(of_x[0], of_x[0]) + dot(of_x[1], of_x[1]) + dot(of_x[2], of_x[2]) + dot(of_x[3], of_x[3]);
    return Normed(
        Sixteen(
            of_x[0] * norm[four],
            of_x[1] * norm[four + 4u],
            of_x[2] * norm[four + 8u],
            of_x[3] * norm[four + 12u],
        ),
        squares,
    );
}
