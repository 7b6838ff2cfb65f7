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
    var tops = vec4<f32>(parts[source + p.width].x);
    for (var c = 0u; c < p.chunks; c += 4u) {
        let chunk = min(vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.chunks - 1u));
        let part = vec4<u32>(source + p.width) + chunk * (p.width + 1u);
        tops = max(tops, vec4<f32>(parts[part.x].x, parts[part.y].x, parts[part.z].x, parts[part.w].x));
    }
    let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
    var sum = vec4<f32>();
    var total = 0.0;
    // Four chunks at once: a GPU waits for them together.
    for (var c = 0u; c < p.chunks; c += 4u) {
        let chunk = min(vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.chunks - 1u));
        let part = vec4<u32>(source) + chunk * (p.width + 1u);
        let heads = mat4x4<f32>(
            parts[part.x + p.width],
            parts[part.y + p.width],
            parts[part.z + p.width],
            parts[part.w + p.width],
        );
        let own = mat4x4<f32>(
            parts[part.x + at.lane],
            parts[part.y + at.lane],
            parts[part.z + at.lane],
            parts[part.w + at.lane],
        );
        let there = vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.chunks);
        let factors = select(vec4<f32>(), exp(vec4<f32>(heads[0].x, heads[1].x, heads[2].x, heads[3].x) - top), there);
        sum += own * factors;
        total += dot(factors, vec4<f32>(heads[0].y, heads[1].y, heads[2].y, heads[3].y));
    }
    let head = group * each + row / p.tokens;
    y[((batch * p.tokens + row % p.tokens) * p.heads + head) * p.width + at.lane] = sum / total;
}
