// Few rows of x by three matrices at once: a workgroup takes four rows of one of them. Queries, keys and values.

struct Params {
    octets: u32, // of a row of each
    rows_0: u32,
    rows_1: u32,
    rows_2: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 4
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, octets, 2)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, rows_0 + rows_1 + rows_2)

const LANES = 64u;

fn product(which: u32, at: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    if which == 0u {
        return octet_dot_0(at, lo, hi);
    }
    if which == 1u {
        return octet_dot_1(at, lo, hi);
    }
    return octet_dot_2(at, lo, hi);
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    var number = group_number(at.group, at.groups);
    let n = at.group.z;
    let groups_0 = (p.rows_0 + 3u) / 4u;
    let groups_1 = (p.rows_1 + 3u) / 4u;
    var which = 0u;
    var rows = p.rows_0;
    var first = 0u;
    if number >= groups_0 + groups_1 {
        which = 2u;
        rows = p.rows_2;
        first = p.rows_0 + p.rows_1;
        number -= groups_0 + groups_1;
    } else if number >= groups_0 {
        which = 1u;
        rows = p.rows_1;
        first = p.rows_0;
        number -= groups_0;
    }
    let row = 4u * number;
    let r = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(rows - 1u)) * p.octets;
    var sum = vec4<f32>();
    for (var o = at.lane; o < p.octets; o += LANES) {
        let lo = x[2u * (n * p.octets + o)];
        let hi = x[2u * (n * p.octets + o) + 1u];
        sum += vec4<f32>(
            product(which, r.x + o, lo, hi),
            product(which, r.y + o, lo, hi),
            product(which, r.z + o, lo, hi),
            product(which, r.w + o, lo, hi),
        );
    }
    let total = workgroup_sum(sum, at);
    if at.lane < 4u && row + at.lane < rows {
        y[n * (p.rows_0 + p.rows_1 + p.rows_2) + first + row + at.lane] = total[at.lane];
    }
}
