// Few rows of x: a workgroup takes four rows of w, its 64 invocations stride over them by sixteen elements.

struct Params {
    sixteens: u32,  // of a row of w
    rows: u32,      // of w in this part
    first_row: u32, // of the part
    outputs: u32,   // of all parts
    bias: u32,      // 1: there is one
    residual: u32,  // 1: there is one
    kind: u32,      // of `activate`
    fours: u32,     // of a row of x
}

@group(0) @binding(0) var<uniform> p: Params; // 8
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, fours)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, outputs)
@group(0) @binding(5) var<storage, read> bias: array<f32>; // (outputs)
@group(0) @binding(6) var<storage, read> residual: array<f32>; // (n, outputs)

const LANES = 64u;

fn sixteens_in_all() -> u32 {
    return p.rows * p.sixteens;
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = 4u * group_number(at.group, at.groups);
    let n = at.group.z;
    let r = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u)) * p.sixteens;
    var sum = vec4<f32>();
    for (var i = at.lane; i < p.sixteens; i += LANES) {
        sum += sixteen_dots(r + i, sixteen_of_x(n, i));
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
