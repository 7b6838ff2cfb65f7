// (x - mean) / sqrt(variance + eps) w + b; one workgroup a row.

struct Params {
    rows: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params; // 3
@group(0) @binding(1) var<storage, read> x: array<f32>; // (rows, width)
@group(0) @binding(2) var<storage, read> w: array<f32>; // (width)
@group(0) @binding(3) var<storage, read> b: array<f32>; // (width)
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // (rows, width)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let row = group_number(at.group, at.groups);
    let first = min(row, p.rows - 1u) * p.width;
    var total = 0.0;
    for (var i = at.lane; i < p.width; i += 64u) {
        total += x[first + i];
    }
    let mean = workgroup_sum(vec4<f32>(total), at).x / f32(p.width);
    var squares = 0.0;
    for (var i = at.lane; i < p.width; i += 64u) {
        let centred = x[first + i] - mean;
        squares += centred * centred;
    }
    let factor = 1.0 / sqrt(workgroup_sum(vec4<f32>(squares), at).x / f32(p.width) + p.eps);
    if row < p.rows {
        for (var i = at.lane; i < p.width; i += 64u) {
            y[first + i] = (x[first + i] - mean) * factor * w[i] + b[i];
        }
    }
}
