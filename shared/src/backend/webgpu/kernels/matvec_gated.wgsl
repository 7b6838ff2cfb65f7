// Few rows of x by two matrices at once: silu(x gate^T) * (x up^T); a workgroup takes four rows of both.

struct Params {
    octets: u32, // of a row of each
    rows: u32,   // of each
}

@group(0) @binding(0) var<uniform> p: Params; // 2
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, octets, 2)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, rows)

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = 4u * group_number(at.group, at.groups);
    let n = at.group.z;
    let r = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u)) * p.octets;
    var gate = vec4<f32>();
    var up = vec4<f32>();
    for (var o = at.lane; o < p.octets; o += LANES) {
        let lo = x[2u * (n * p.octets + o)];
        let hi = x[2u * (n * p.octets + o) + 1u];
        let a = r + vec4<u32>(o);
        gate += vec4<f32>(
            octet_dot_0(a.x, lo, hi),
            octet_dot_0(a.y, lo, hi),
            octet_dot_0(a.z, lo, hi),
            octet_dot_0(a.w, lo, hi),
        );
        up += vec4<f32>(
            octet_dot_1(a.x, lo, hi),
            octet_dot_1(a.y, lo, hi),
            octet_dot_1(a.z, lo, hi),
            octet_dot_1(a.w, lo, hi),
        );
    }
    gate = workgroup_sum(gate, at);
    up = workgroup_sum(up, at);
    if at.lane < 4u && row + at.lane < p.rows {
        let g = gate[at.lane];
        // The exponential ends as in `silu_mul`.
        y[n * p.rows + row + at.lane] = g / (1.0 + exp(min(-g, 80.0))) * up[at.lane];
    }
}
