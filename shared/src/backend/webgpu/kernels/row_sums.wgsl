// Of `matvec_joined.wgsl`, for each matrix: four of its rows, from octet `first`. A loop for each, so that no branch stands
// inside of one.
fn row_sums(r: vec4<u32>, n: u32, first: u32) -> Summed {
    var summed = Summed();
    for (var o = first; o < p.octets; o += LANES) {
        let of_x = normed(n, o);
        summed.sums += octet_dots(r + o, of_x.lo, of_x.hi);
        summed.squares += of_x.squares;
    }
    return summed;
}
