// Many rows of x: a workgroup makes a tile of 16 rows of x by 256 rows of w, each invocation 16 by 4 of it, in steps of a
// block of 32. Rows of x lie in workgroup memory, where all invocations read the same ones at once; an octet of w serves one
// invocation alone, which unpacks it into registers. (Both in workgroup memory took twice as long on SwiftShader.)

struct Params {
    sixteens: u32,  // of a row of w
    rows: u32,      // of w in this part
    first_row: u32, // of the part
    outputs: u32,   // of all parts
    bias: u32,      // 1: there is one
    residual: u32,  // 1: there is one
    kind: u32,      // of `activate`
    fours: u32,     // of a row of x
    n: u32,         // rows of x
}

@group(0) @binding(0) var<uniform> p: Params; // 9
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, fours)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, outputs)
@group(0) @binding(5) var<storage, read> bias: array<f32>; // (outputs)
@group(0) @binding(6) var<storage, read> residual: array<f32>; // (n, outputs)

fn sixteens_in_all() -> u32 {
    return p.rows * p.sixteens;
}

var<workgroup> xs: array<vec4<f32>, 128>; // (8 fours, 16)

// A step's fours of four rows of x, one a row of the matrix.
fn rows(at: u32) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(xs[at], xs[at + 1u], xs[at + 2u], xs[at + 3u]));
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let x0 = 16u * at.group.y;
    let w0 = 256u * at.group.x + at.lane;
    // What is past the last row repeats it, and is not written.
    let source = min(x0 + at.lane / 4u, p.n - 1u) * p.fours;
    let to = 32u * (at.lane % 4u) + at.lane / 4u;
    var w: array<u32, 4>;
    for (var j = 0u; j < 4u; j += 1u) {
        w[j] = min(w0 + 64u * j, p.rows - 1u) * p.sixteens;
    }
    // sums_g[j][i]: row x0 + 4 g + i of x, row w0 + 64 j of w.
    var sums_0 = mat4x4<f32>();
    var sums_1 = mat4x4<f32>();
    var sums_2 = mat4x4<f32>();
    var sums_3 = mat4x4<f32>();
    for (var block = 0u; block < p.sixteens / 2u; block += 1u) {
        workgroupBarrier();
        // Two fours of each, zeros past the row's end.
        let fours = 8u * block + 2u * (at.lane % 4u) + vec2<u32>(0u, 1u);
        let places = source + min(fours, vec2<u32>(p.fours - 1u));
        xs[to] = select(vec4<f32>(), x[places.x], fours.x < p.fours);
        xs[to + 16u] = select(vec4<f32>(), x[places.y], fours.y < p.fours);
        workgroupBarrier();
        let half = block % 2u;
        for (var i = 0u; i < 4u; i += 1u) {
            let sixteen = block / 2u * 4u + i;
            let w_0 = octet(w[0] + sixteen, half);
            let w_1 = octet(w[1] + sixteen, half);
            let w_2 = octet(w[2] + sixteen, half);
            let w_3 = octet(w[3] + sixteen, half);
            let lo = mat4x4<f32>(w_0.lo, w_1.lo, w_2.lo, w_3.lo);
            let hi = mat4x4<f32>(w_0.hi, w_1.hi, w_2.hi, w_3.hi);
            let first = 16u * i;
            sums_0 += rows(first) * lo + rows(first + 64u) * hi;
            sums_1 += rows(first + 4u) * lo + rows(first + 68u) * hi;
            sums_2 += rows(first + 8u) * lo + rows(first + 72u) * hi;
            sums_3 += rows(first + 12u) * lo + rows(first + 76u) * hi;
        }
    }
    var sums = array<mat4x4<f32>, 4>(sums_0, sums_1, sums_2, sums_3);
    for (var j = 0u; j < 4u; j += 1u) {
        let r = w0 + 64u * j;
        for (var i = 0u; i < 16u; i += 1u) {
            let n = x0 + i;
            if r < p.rows && n < p.n {
                let output = p.first_row + r;
                var value = sums[i / 4u][j][i % 4u];
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
    }
}
