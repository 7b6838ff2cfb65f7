// Sum over a workgroup of LANES, the same in every invocation.

var<workgroup> partial_sums: array<vec4<f32>, LANES>;

fn workgroup_sum(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    workgroupBarrier();
    partial_sums[at.lane] = value;
    for (var width = LANES / 2u; width > 0u; width >>= 1u) {
        workgroupBarrier();
        if at.lane < width {
            partial_sums[at.lane] += partial_sums[at.lane + width];
        }
    }
    workgroupBarrier();
    return partial_sums[0];
}
