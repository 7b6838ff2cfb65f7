// Attention of one token with an online softmax, as in `attention.wgsl`. A workgroup takes one head
// and a chunk of the keys, LANES at a time: first eight invocations a key, then one a key, then as many as a head has vectors
// for each of several keys. There are few workgroups, so what counts is how much each of them reads at the same time.

const LANES = 256u;

var<workgroup> query: array<vec4<f32>, 64>; // (width)
var<workgroup> shares: array<f32, 8u * LANES>; // (8, LANES) of the products with keys
var<workgroup> weights: array<f32, LANES>; // of keys
var<workgroup> sixteen: array<f32, 16>;
var<workgroup> found: f32; // of all of these
var<workgroup> outputs: array<vec4<f32>, LANES>; // (keys at once, width)

// The eighth of a query's product with the key whose vectors begin there.
fn share(vectors: u32, eighth: u32) -> f32 {
    var sum = vec4<f32>();
    for (var first = 0u; first < p.width; first += 32u) {
        let c = vec4<u32>(first + eighth) + vec4<u32>(0u, 8u, 16u, 24u);
        let place = vec4<u32>(vectors) + min(c, vec4<u32>(p.width - 1u));
        let k_0 = k[place.x];
        let k_1 = k[place.y];
        let k_2 = k[place.z];
        let k_3 = k[place.w];
        let products = vec4<f32>(
            dot(query[c.x], k_0),
            dot(query[c.y], k_1),
            dot(query[c.z], k_2),
            dot(query[c.w], k_3),
        );
        sum += select(vec4<f32>(), products, c < vec4<u32>(p.width));
    }
    return dot(sum, vec4<f32>(1.0));
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let lane = at.lane;
    let batch = at.group.y / p.groups;
    let group = at.group.y % p.groups;
    let head = batch * p.heads + group * (p.heads / p.groups) + at.group.x;
    if lane < p.width {
        query[lane] = p.scale * q[head * p.width + lane];
    }
    let keys = batch * p.by_batch + group * p.by_group;
    let seen = p.seen + moved;
    let chunk = ((seen + p.chunks - 1u) / p.chunks + 63u) / 64u * 64u;
    let begin = at.group.z * chunk;
    let end = min(begin + chunk, seen);
    // Keys whose values are read at the same time, and which of them this invocation reads.
    let together = LANES / p.width;
    let own = lane / p.width;
    let values = keys + p.apart + lane % p.width;
    var sum = vec4<f32>();
    var total = 0.0;
    var top = LOWEST;
    // Bounds that every invocation is known to share: browsers ask that of a loop with a barrier.
    for (var step = 0u; step < chunk; step += LANES) {
        let base = begin + step;
        let count = select(0u, min(LANES, end - base), base < end);
        workgroupBarrier();
        for (var j = lane / 8u; j < count; j += LANES / 8u) {
            shares[lane % 8u * LANES + j] = share(keys + (base + j) * p.by_token, lane % 8u);
        }
        workgroupBarrier();
        var score = LOWEST;
        if lane < count {
            score = 0.0;
            for (var i = 0u; i < 8u; i += 1u) {
                score += shares[i * LANES + lane];
            }
        }
        weights[lane] = score;
        workgroupBarrier();
        if lane < 16u {
            var largest = LOWEST;
            for (var i = lane; i < LANES; i += 16u) {
                largest = max(largest, weights[i]);
            }
            sixteen[lane] = largest;
        }
        workgroupBarrier();
        if lane == 0u {
            found = top;
            for (var i = 0u; i < 16u; i += 1u) {
                found = max(found, sixteen[i]);
            }
        }
        workgroupBarrier();
        let largest = found;
        let shrink = exp(top - largest);
        top = largest;
        let weight = select(exp(score - largest), 0.0, score <= LOWEST);
        weights[lane] = weight;
        total = total * shrink + weight;
        sum *= shrink;
        workgroupBarrier();
        var j = select(count, own, own < together);
        // Four keys at once: a GPU waits for all of their values together.
        for (; j + 3u * together < count; j += 4u * together) {
            let key = vec4<u32>(j) + together * vec4<u32>(0u, 1u, 2u, 3u);
            let place = vec4<u32>(values) + (base + key) * p.by_token;
            let of_keys = vec4<f32>(weights[key.x], weights[key.y], weights[key.z], weights[key.w]);
            sum += mat4x4<f32>(v[place.x], v[place.y], v[place.z], v[place.w]) * of_keys;
        }
        for (; j < count; j += together) {
            sum += weights[j] * v[values + (base + j) * p.by_token];
        }
    }
    workgroupBarrier();
    outputs[lane] = sum;
    weights[lane] = total;
    workgroupBarrier();
    if lane < 16u {
        total = 0.0;
        for (var i = lane; i < LANES; i += 16u) {
            total += weights[i];
        }
        sixteen[lane] = total;
    }
    workgroupBarrier();
    if lane == 0u {
        found = 0.0;
        for (var i = 0u; i < 16u; i += 1u) {
            found += sixteen[i];
        }
    }
    workgroupBarrier();
    if lane >= p.width {
        return;
    }
    total = found;
    sum = vec4<f32>();
    for (var i = lane; i < together * p.width; i += p.width) {
        sum += outputs[i];
    }
    if p.chunks == 1u {
        y[head * p.width + lane] = sum / total;
        return;
    }
    let to = (head * p.chunks + at.group.z) * (p.width + 1u);
    y[to + lane] = sum;
    if lane == 0u {
        y[to + p.width] = vec4<f32>(top, total, 0.0, 0.0);
    }
}
