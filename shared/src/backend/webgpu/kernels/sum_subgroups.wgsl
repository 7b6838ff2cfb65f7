// Sum over a workgroup of LANES, the same in every invocation: over each subgroup, then over their sums. A subgroup has at
// least 4 invocations.

var<workgroup> partial_sums: array<vec4<f32>, LANES / 4u>;

fn workgroup_sum(value: vec4<f32>, at: Invocation) -> vec4<f32> {
    workgroupBarrier();
    let sum = subgroupAdd(value);
    if at.subgroup_lane == 0u {
        partial_sums[at.lane / at.subgroup_size] = sum;
    }
    workgroupBarrier();
    // Each subgroup adds up all of them, every invocation its share.
    var total = vec4<f32>();
    for (var i = at.subgroup_lane; i * at.subgroup_size < LANES; i += at.subgroup_size) {
        total += partial_sums[i];
    }
    return subgroupAdd(total);
}
