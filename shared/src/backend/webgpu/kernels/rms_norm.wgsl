// x / sqrt(mean(x x) + eps) w; one workgroup a row, of few rows a larger one.

const LANES = 64u;

struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params; // 3
@group(0) @binding(1) var<storage, read> x: array<f32>; // (rows, width)
@group(0) @binding(2) var<storage, read> w: array<f32>; // (width)
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // (rows, width)

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = group_number(at.group, at.groups);
    let first = min(row, p.rows - 1u) * p.width;
    var squares = 0.0;
    for (var i = at.lane; i < p.width; i += 4u * LANES) {
        let four = four_of_row(first, i);
        squares += dot(four, four);
    }
    let factor = 1.0 / sqrt(workgroup_sum(vec4<f32>(squares), at).x / f32(p.width) + p.eps);
    if row < p.rows {
        for (var i = at.lane; i < p.width; i += 4u * LANES) {
            let four = four_of_row(first, i) * factor;
            for (var j = 0u; j < 4u; j += 1u) {
                let c = i + LANES * j;
                if c < p.width {
                    y[first + c] = four[j] * w[c];
                }
            }
        }
    }
}
