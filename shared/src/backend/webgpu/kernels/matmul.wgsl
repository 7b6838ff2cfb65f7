// Many rows of x: a workgroup of 8 x 8 makes a tile of 32 rows of x by 64 rows of w, each invocation 4 by 8 of it, in
// steps of 32 elements. Rows of a tile are 9 vectors apart, so that neighbours read from different banks.

struct Params {
    octets: u32,    // of a row of w
    rows: u32,      // of w in this part
    first_row: u32, // of the part
    outputs: u32,   // of all parts
    bias: u32,      // 1: there is one
    residual: u32,  // 1: there is one
    kind: u32,      // of `activate`
    n: u32,         // rows of x
}

@group(0) @binding(0) var<uniform> p: Params; // 8
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, octets, 2)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, outputs)
@group(0) @binding(5) var<storage, read> bias: array<f32>; // (outputs)
@group(0) @binding(6) var<storage, read> residual: array<f32>; // (n, outputs)

var<workgroup> xs: array<vec4<f32>, 288>; // (32, 9)
var<workgroup> ws: array<vec4<f32>, 576>; // (64, 9)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let column = at.lane % 8u;
    let row = 4u * (at.lane / 8u);
    let x0 = 32u * at.group.y;
    let w0 = 64u * at.group.x;
    // sums[j][i]: row x0 + row + i of x, row w0 + column + 8 j of w.
    var sums: array<vec4<f32>, 8>;
    for (var k = 0u; k < p.octets; k += 4u) {
        workgroupBarrier();
        for (var i = at.lane; i < 128u; i += 64u) {
            let r = i / 4u;
            let o = i % 4u;
            var lo = vec4<f32>();
            var hi = vec4<f32>();
            if x0 + r < p.n && k + o < p.octets {
                let source = 2u * ((x0 + r) * p.octets + k + o);
                lo = x[source];
                hi = x[source + 1u];
            }
            xs[r * 9u + 2u * o] = lo;
            xs[r * 9u + 2u * o + 1u] = hi;
        }
        for (var i = at.lane; i < 256u; i += 64u) {
            let r = i / 4u;
            let o = i % 4u;
            var w = Octet();
            if w0 + r < p.rows && k + o < p.octets {
                w = octet((w0 + r) * p.octets + k + o);
            }
            ws[r * 9u + 2u * o] = w.lo;
            ws[r * 9u + 2u * o + 1u] = w.hi;
        }
        workgroupBarrier();
        for (var c = 0u; c < 8u; c += 1u) {
            let four = mat4x4<f32>(
                xs[row * 9u + c],
                xs[(row + 1u) * 9u + c],
                xs[(row + 2u) * 9u + c],
                xs[(row + 3u) * 9u + c],
            );
            for (var j = 0u; j < 8u; j += 1u) {
                sums[j] += ws[(column + 8u * j) * 9u + c] * four;
            }
        }
    }
    for (var j = 0u; j < 8u; j += 1u) {
        let r = w0 + column + 8u * j;
        for (var i = 0u; i < 4u; i += 1u) {
            let n = x0 + row + i;
            if r < p.rows && n < p.n {
                let output = p.first_row + r;
                var value = sums[j][i];
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
