// As `workgroup_sum`, of the columns of a kernel's `Sums` at once.

var<workgroup> partial_columns: array<Sums, LANES>;

fn workgroup_sums(value: Sums, at: Invocation) -> Sums {
    workgroupBarrier();
    partial_columns[at.lane] = value;
    for (var width = LANES / 2u; width > 0u; width >>= 1u) {
        workgroupBarrier();
        if at.lane < width {
            partial_columns[at.lane] += partial_columns[at.lane + width];
        }
    }
    workgroupBarrier();
    return partial_columns[0];
}
