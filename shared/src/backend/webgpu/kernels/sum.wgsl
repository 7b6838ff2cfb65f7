// Sum over a workgroup of 64, the same in every invocation.

var<workgroup> partial_sums: array<vec4<f32>, 64>;

fn workgroup_sum(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    workgroupBarrier();
    partial_sums[at.lane] = value;
    for (var width = 32u; width > 0u; width >>= 1u) {
        workgroupBarrier();
        if at.lane < width {
            partial_sums[at.lane] += partial_sums[at.lane + width];
        }
    }
    workgroupBarrier();
    return partial_sums[0];
}
