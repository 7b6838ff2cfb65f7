// Sixteen `i` of row n of x.
fn sixteen_of_x(n: u32, i: u32) -> Sixteen {
    let four = 4u * n * p.sixteens + first_four(i);
    return Sixteen(x[four], x[four + 4u], x[four + 8u], x[four + 12u]);
}
