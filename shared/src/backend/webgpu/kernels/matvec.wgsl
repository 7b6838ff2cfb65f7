// Few rows of x: a workgroup takes four rows of w, its 64 invocations stride over their octets.

struct Params {
    octets: u32,    // of a row of w
    rows: u32,      // of w in this part
    first_row: u32, // of the part
    outputs: u32,   // of all parts
    bias: u32,      // 1: there is one
    residual: u32,  // 1: there is one
    kind: u32,      // of `activate`
}

@group(0) @binding(0) var<uniform> p: Params; // 7
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, octets, 2)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, outputs)
@group(0) @binding(5) var<storage, read> bias: array<f32>; // (outputs)
@group(0) @binding(6) var<storage, read> residual: array<f32>; // (n, outputs)

fn products(row: u32, o: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    let w = octet(min(row, p.rows - 1u) * p.octets + o);
    return dot(w.lo, lo) + dot(w.hi, hi);
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let row = 4u * group_number(at.group, at.groups);
    let n = at.group.z;
    var sum = vec4<f32>();
    for (var o = at.lane; o < p.octets; o += 64u) {
        let lo = x[2u * (n * p.octets + o)];
        let hi = x[2u * (n * p.octets + o) + 1u];
        sum += vec4<f32>(
            products(row, o, lo, hi),
            products(row + 1u, o, lo, hi),
            products(row + 2u, o, lo, hi),
            products(row + 3u, o, lo, hi),
        );
    }
    let total = workgroup_sum(sum, at);
    if at.lane < 4u && row + at.lane < p.rows {
        let output = p.first_row + row + at.lane;
        var value = total[at.lane];
        if p.bias == 1u {
            value += bias[output];
        }
        value = activate(value, p.kind);
        if p.residual == 1u {
            value = residual[n * p.outputs + output] + value;
        }
        y[n * p.outputs + output] = value;
    }
}
