// Of `matvec_joined.wgsl`, for each matrix: four of its rows, from sixteen `first` on. A loop for each, so that no branch stands
// inside of one.
fn row_sums(r: vec4<u32>, n: u32, first: u32) -> Summed {
    var summed = Summed();
    for (var i = first; i < p.sixteens; i += LANES) {
        let of_x = normed(n, i);
        summed.sums += sixteen_dots(r + i, of_x.values);
        summed.squares += of_x.squares;
    }
    return summed;
}
