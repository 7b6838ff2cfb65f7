// As `workgroup_sum`, of a kernel's `Sums` and one number more at once.

struct Summed {
    sums: Sums,
    squares: f32,
}

var<workgroup> partial_sums: array<Sums, LANES>;
var<workgroup> partial_squares: array<f32, LANES>;

fn workgroup_sums(sums: Sums, squares: f32, at: Invocation) -> Summed {
    workgroupBarrier();
    partial_sums[at.lane] = sums;
    partial_squares[at.lane] = squares;
    for (var width = LANES / 2u; width > 0u; width >>= 1u) {
        workgroupBarrier();
        if at.lane < width {
            partial_sums[at.lane] += partial_sums[at.lane + width];
            partial_squares[at.lane] += partial_squares[at.lane + width];
        }
    }
    workgroupBarrier();
    return Summed(partial_sums[0], partial_squares[0]);
}
