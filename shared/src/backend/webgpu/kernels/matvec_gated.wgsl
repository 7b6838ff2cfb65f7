// The RMS norm of few rows of x by two matrices at once: silu(norm(x) gate^T) * (norm(x) up^T); a workgroup takes four rows
// of both. What a row of x is divided by, it finds on its way, and divides the sums.

struct Params {
    sixteens: u32, // of a row of each
    rows: u32,     // of each
    eps: f32,
    fours: u32,    // of a row of x
}

@group(0) @binding(0) var<uniform> p: Params; // 4
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (n, fours)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, rows)
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>; // (fours)

const LANES = 64u;
// Of the gate and of the way up, each of four rows.
const PARTS = 2u;
alias Sums = mat2x4<f32>;

fn sixteens_in_all_0() -> u32 {
    return p.rows * p.sixteens;
}

fn sixteens_in_all_1() -> u32 {
    return p.rows * p.sixteens;
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = 4u * group_number(at.group, at.groups);
    let n = at.group.z;
    let r = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u)) * p.sixteens;
    var gate = vec4<f32>();
    var up = vec4<f32>();
    var squares = 0.0;
    for (var i = at.lane; i < p.sixteens; i += LANES) {
        let of_x = normed(n, i);
        squares += of_x.squares;
        gate += sixteen_dots_0(r + i, of_x.values);
        up += sixteen_dots_1(r + i, of_x.values);
    }
    let summed = workgroup_sums(Sums(gate, up), squares, at);
    if at.lane < 4u && row + at.lane < p.rows {
        let factor = 1.0 / sqrt(summed.squares / f32(4u * p.fours) + p.eps);
        gate = factor * summed.sums[0];
        up = factor * summed.sums[1];
        let g = gate[at.lane];
        // The exponential ends as in `silu_mul`.
        y[n * p.rows + row + at.lane] = g / (1.0 + exp(min(-g, 80.0))) * up[at.lane];
    }
}
