// Sum over a workgroup of 64, the same in every invocation: over each subgroup, then over their sums. A subgroup has at
// least 4 invocations, so there are at most 16.

var<workgroup> partial_sums: array<vec4<f32>, 16>;

fn workgroup_sum(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    workgroupBarrier();
    let sum = subgroupAdd(value);
    if at.subgroup_lane == 0u {
        partial_sums[at.lane / at.subgroup_size] = sum;
    }
    workgroupBarrier();
    // Each subgroup adds up all of them, every invocation its share.
    var total = vec4<f32>();
    for (var i = at.subgroup_lane; i * at.subgroup_size < 64u; i += at.subgroup_size) {
        total += partial_sums[i];
    }
    return subgroupAdd(total);
}
