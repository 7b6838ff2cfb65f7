// As `workgroup_sum`, of the columns of a kernel's `Sums` at once.

var<workgroup> partial_columns: array<Sums, LANES / 4u>;

fn over_subgroup(value: Sums) -> Sums {
    var sums = value;
    for (var c = 0u; c < COLUMNS; c += 1u) {
        sums[c] = subgroupAdd(sums[c]);
    }
    return sums;
}

fn workgroup_sums(value: Sums, at: Invocation) -> Sums {
    workgroupBarrier();
    let sums = over_subgroup(value);
    if at.subgroup_lane == 0u {
        partial_columns[at.lane / at.subgroup_size] = sums;
    }
    workgroupBarrier();
    var total = Sums();
    for (var i = at.subgroup_lane; i * at.subgroup_size < LANES; i += at.subgroup_size) {
        total += partial_columns[i];
    }
    return over_subgroup(total);
}
