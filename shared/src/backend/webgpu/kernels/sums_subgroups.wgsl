// As `workgroup_sum`, of a kernel's `Sums` and one number more at once.

struct Summed {
    sums: Sums,
    squares: f32,
}

var<workgroup> partial_sums: array<Sums, LANES / 4u>;
var<workgroup> partial_squares: array<f32, LANES / 4u>;

fn over_subgroup(value: Sums) -> Sums {
    var sums = value;
    for (var i = 0u; i < PARTS; i += 1u) {
        sums[i] = subgroupAdd(sums[i]);
    }
    return sums;
}

fn workgroup_sums(sums: Sums, squares: f32, at: Invocation) -> Summed {
    workgroupBarrier();
    let sum = over_subgroup(sums);
    let sum_of_squares = subgroupAdd(squares);
    if at.subgroup_lane == 0u {
        partial_sums[at.lane / at.subgroup_size] = sum;
        partial_squares[at.lane / at.subgroup_size] = sum_of_squares;
    }
    workgroupBarrier();
    var total = Sums();
    var total_squares = 0.0;
    for (var i = at.subgroup_lane; i * at.subgroup_size < LANES; i += at.subgroup_size) {
        total += partial_sums[i];
        total_squares += partial_squares[i];
    }
    return Summed(over_subgroup(total), subgroupAdd(total_squares));
}
