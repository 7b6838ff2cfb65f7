// Attention with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022). A workgroup takes four queries
// that share their keys, row r of a group being query r % tokens of its head r / tokens, and a chunk of the keys, 64 at
// a time: first an invocation a key, then 16 invocations a query.

var<workgroup> queries: array<vec4<f32>, 256>; // (4, 64)
var<workgroup> weights: array<f32, 256>; // (4, 64)
var<workgroup> row_values: array<f32, 64>; // (4, 16)

fn query_at(batch: u32, group: u32, row: u32) -> u32 {
    let head = group * (p.heads / p.groups) + row / p.tokens;
    return ((batch * p.tokens + row % p.tokens) * p.heads + head) * p.width;
}

// Of vector c of the four queries with that of a key.
fn products(c: u32, vector: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        dot(queries[c], vector),
        dot(queries[64u + c], vector),
        dot(queries[128u + c], vector),
        dot(queries[192u + c], vector),
    );
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let lane = at.lane;
    let batch = at.group.y / p.groups;
    let group = at.group.y % p.groups;
    let rows = p.tokens * (p.heads / p.groups);
    let row0 = 4u * at.group.x;
    for (var i = lane; i < 4u * p.width; i += 64u) {
        let r = i / p.width;
        let c = i % p.width;
        queries[r * 64u + c] = p.scale * q[query_at(batch, group, min(row0 + r, rows - 1u)) + c];
    }
    let keys = batch * p.by_batch + group * p.by_group;
    let own = lane / 16u; // the query whose softmax and output this invocation helps with
    let column = lane % 16u;
    var sums: array<vec4<f32>, 4>;
    var total = 0.0;
    var top = LOWEST;
    let seen = p.seen + moved;
    let chunk = ((seen + p.chunks - 1u) / p.chunks + 63u) / 64u * 64u;
    let begin = at.group.z * chunk;
    let end = min(begin + chunk, seen);
    // Bounds that every invocation is known to share: browsers ask that of a loop with a barrier.
    for (var step = 0u; step < chunk; step += 64u) {
        workgroupBarrier();
        let base = begin + step;
        let key = base + lane;
        var scores = vec4<f32>();
        if key < end {
            let vectors = keys + key * p.by_token;
            // Four vectors at once: a GPU waits for them together.
            for (var c = 0u; c < p.width; c += 4u) {
                let four = vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u);
                let place = vec4<u32>(vectors) + min(four, vec4<u32>(p.width - 1u));
                let k_0 = k[place.x];
                let k_1 = k[place.y];
                let k_2 = k[place.z];
                let k_3 = k[place.w];
                scores += products(four.x, k_0);
                scores += select(vec4<f32>(), products(four.y, k_1), four.y < p.width);
                scores += select(vec4<f32>(), products(four.z, k_2), four.z < p.width);
                scores += select(vec4<f32>(), products(four.w, k_3), four.w < p.width);
            }
        }
        for (var r = 0u; r < 4u; r += 1u) {
            let visible = p.causal == 0u || key <= p.first + moved + (row0 + r) % p.tokens;
            weights[r * 64u + lane] = select(LOWEST, scores[r], key < end && visible);
        }
        workgroupBarrier();
        var largest = top;
        for (var i = column; i < 64u; i += 16u) {
            largest = max(largest, weights[own * 64u + i]);
        }
        row_values[lane] = largest;
        workgroupBarrier();
        for (var i = 0u; i < 16u; i += 1u) {
            largest = max(largest, row_values[own * 16u + i]);
        }
        let shrink = exp(top - largest);
        top = largest;
        total *= shrink;
        for (var c = 0u; c < 4u; c += 1u) {
            sums[c] *= shrink;
        }
        for (var i = column; i < 64u; i += 16u) {
            let score = weights[own * 64u + i];
            let weight = select(exp(score - largest), 0.0, score <= LOWEST);
            weights[own * 64u + i] = weight;
            total += weight;
        }
        workgroupBarrier();
        // Four keys at once: a GPU waits for all of their values together. Those past the end have no weight.
        let count = select(0u, min(64u, end - base), base < end);
        for (var j = 0u; j < count; j += 4u) {
            let w = own * 64u + j;
            let weight = vec4<f32>(weights[w], weights[w + 1u], weights[w + 2u], weights[w + 3u]);
            let key = min(vec4<u32>(base + j) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u));
            let source = vec4<u32>(keys + p.apart + column) + key * p.by_token;
            for (var c = 0u; c < 4u; c += 1u) {
                if column + 16u * c < p.width {
                    let place = source + vec4<u32>(16u * c);
                    sums[c] += mat4x4<f32>(v[place.x], v[place.y], v[place.z], v[place.w]) * weight;
                }
            }
        }
    }
    workgroupBarrier();
    row_values[lane] = total;
    workgroupBarrier();
    total = 0.0;
    for (var i = 0u; i < 16u; i += 1u) {
        total += row_values[own * 16u + i];
    }
    let row = row0 + own;
    if row >= rows {
        return;
    }
    var to = query_at(batch, group, row);
    var factor = 1.0 / total;
    if p.chunks > 1u {
        to = ((at.group.y * rows + row) * p.chunks + at.group.z) * (p.width + 1u);
        factor = 1.0;
        if column == 0u {
            y[to + p.width] = vec4<f32>(top, total, 0.0, 0.0);
        }
    }
    for (var c = 0u; c < 4u; c += 1u) {
        if column + 16u * c < p.width {
            y[to + column + 16u * c] = factor * sums[c];
        }
    }
}
