// The RMS norm of few rows of x by two matrices at once: silu(norm(x) gate^T) * (norm(x) up^T); a workgroup takes four rows
// of both. What a row of x is divided by, it finds on its way, and divides the sums.

struct Params {
    octets: u32, // of a row of each
    rows: u32,   // of each
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params; // 3
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, octets, 2)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, rows)
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>; // (octets, 2)

const LANES = 64u;
// Of the gate and of the way up, each of four rows.
const PARTS = 2u;
alias Sums = mat2x4<f32>;

fn octets_in_all_0() -> u32 {
    return p.rows * p.octets;
}

fn octets_in_all_1() -> u32 {
    return p.rows * p.octets;
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = 4u * group_number(at.group, at.groups);
    let n = at.group.z;
    let r = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u)) * p.octets;
    var gate = vec4<f32>();
    var up = vec4<f32>();
    var squares = 0.0;
    for (var o = at.lane; o < p.octets; o += LANES) {
        let x_lo = x[2u * (n * p.octets + o)];
        let x_hi = x[2u * (n * p.octets + o) + 1u];
        let lo = x_lo * norm[2u * o];
        let hi = x_hi * norm[2u * o + 1u];
        squares += dot(x_lo, x_lo) + dot(x_hi, x_hi);
        gate += octet_dots_0(r + o, lo, hi);
        up += octet_dots_1(r + o, lo, hi);
    }
    let summed = workgroup_sums(Sums(gate, up), squares, at);
    if at.lane < 4u && row + at.lane < p.rows {
        let factor = 1.0 / sqrt(summed.squares / f32(8u * p.octets) + p.eps);
        gate = factor * summed.sums[0];
        up = factor * summed.sums[1];
        let g = gate[at.lane];
        // The exponential ends as in `silu_mul`.
        y[n * p.rows + row + at.lane] = g / (1.0 + exp(min(-g, 80.0))) * up[at.lane];
    }
}
