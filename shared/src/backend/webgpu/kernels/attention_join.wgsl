// Joins the chunks of attention: one workgroup a row of a group, one invocation a vector.

struct Params {
    tokens: u32,
    heads: u32,
    groups: u32,
    width: u32, // vectors of a head
    chunks: u32,
    n: u32, // rows in all
}

@group(0) @binding(0) var<uniform> p: Params; // 6
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>; // (batch, groups, rows, chunks, width + 1)
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // (batch, tokens, heads, width)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = group_number(at.group, at.groups);
    if i >= p.n || at.lane >= p.width {
        return;
    }
    let each = p.heads / p.groups;
    let rows = p.tokens * each;
    let row = i % rows;
    let group = i / rows % p.groups;
    let batch = i / rows / p.groups;
    let source = i * p.chunks * (p.width + 1u);
    var top = parts[source + p.width].x;
    for (var c = 1u; c < p.chunks; c += 1u) {
        top = max(top, parts[source + c * (p.width + 1u) + p.width].x);
    }
    var sum = vec4<f32>();
    var total = 0.0;
    for (var c = 0u; c < p.chunks; c += 1u) {
        let part = source + c * (p.width + 1u);
        let factor = exp(parts[part + p.width].x - top);
        sum += factor * parts[part + at.lane];
        total += factor * parts[part + p.width].y;
    }
    let head = group * each + row / p.tokens;
    y[((batch * p.tokens + row % p.tokens) * p.heads + head) * p.width + at.lane] = sum / total;
}
