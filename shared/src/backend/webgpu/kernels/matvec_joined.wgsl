// The RMS norm of few rows of x by three matrices at once: queries, rotated; keys, rotated, and values into the cache. A
// workgroup takes four rows of one matrix, two pairs that are rotated. What a row of x is divided by, it finds on its way,
// and divides the sums.

struct Params {
    octets: u32, // of a row of each
    tokens: u32,
    heads: u32,
    groups: u32, // heads of keys, and of values
    width: u32, // elements of a head
    start: u32, // position of the first token
    interleaved: u32, // 0: pairs (i, i + width / 2); 1: pairs (2 i, 2 i + 1)
    capacity: u32,
    positions: u32, // of the table
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params; // 10
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (batch, tokens, octets, 2)
@group(0) @binding(2) var<storage, read_write> q: array<f32>; // (batch, tokens, heads, width)
@group(0) @binding(6) var<storage, read_write> cache: array<f32>; // (batch, 2 groups, capacity, width)
@group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>; // (octets, 2)
@group(0) @binding(9) var<storage, read> rope: array<f32>; // (2, positions, width / 2)

const LANES = 64u;
// Of four rows; of the squares of x.
const COLUMNS = 2u;
alias Sums = mat2x4<f32>;

fn octets_in_all_0() -> u32 {
    return p.heads * p.width * p.octets;
}

fn octets_in_all_1() -> u32 {
    return p.groups * p.width * p.octets;
}

fn octets_in_all_2() -> u32 {
    return p.groups * p.width * p.octets;
}

fn product(which: u32, at: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    if which == 0u {
        return octet_dot_0(at, lo, hi);
    }
    if which == 1u {
        return octet_dot_1(at, lo, hi);
    }
    return octet_dot_2(at, lo, hi);
}

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let n = at.group.z;
    let quads = p.width / 4u;
    let number = group_number(at.group, at.groups);
    // Of queries, then of keys, then of values. What is past the last one repeats it, and is not written.
    let head = min(number / quads, p.heads + 2u * p.groups - 1u);
    var which = 0u;
    var own = head;
    if head >= p.heads + p.groups {
        which = 2u;
        own = head - p.heads - p.groups;
    } else if head >= p.heads {
        which = 1u;
        own = head - p.heads;
    }
    // Two elements of each of two neighbouring pairs, inside of their head.
    let lanes = vec4<u32>(0u, 1u, 2u, 3u);
    let pairs = 2u * (number % quads) + lanes / 2u;
    let inside = select(pairs + lanes % 2u * (p.width / 2u), 2u * pairs + lanes % 2u, p.interleaved == 1u);
    let r = (own * p.width + inside) * p.octets;
    var sum = vec4<f32>();
    var squares = vec4<f32>();
    for (var o = at.lane; o < p.octets; o += LANES) {
        let x_lo = x[2u * (n * p.octets + o)];
        let x_hi = x[2u * (n * p.octets + o) + 1u];
        let lo = x_lo * norm[2u * o];
        let hi = x_hi * norm[2u * o + 1u];
        squares += x_lo * x_lo + x_hi * x_hi;
        sum += vec4<f32>(
            product(which, r.x + o, lo, hi),
            product(which, r.y + o, lo, hi),
            product(which, r.z + o, lo, hi),
            product(which, r.w + o, lo, hi),
        );
    }
    let sums = workgroup_sums(Sums(sum, squares), at);
    if at.lane >= 4u || number >= quads * (p.heads + 2u * p.groups) {
        return;
    }
    var four = sums[0] / sqrt(dot(sums[1], vec4<f32>(1.0)) / f32(8u * p.octets) + p.eps);
    var places = inside;
    let position = p.start + moved + n % p.tokens;
    var value = four[at.lane];
    if which < 2u {
        let turn = position * (p.width / 2u) + 2u * (number % quads) + at.lane / 2u;
        let other = four[at.lane ^ 1u];
        value = value * rope[turn] + select(other, -other, at.lane % 2u == 0u) * rope[p.positions * (p.width / 2u) + turn];
    }
    if which == 0u {
        q[(n * p.heads + head) * p.width + places[at.lane]] = value;
    } else {
        let line = (n / p.tokens * 2u * p.groups + head - p.heads) * p.capacity + position;
        cache[line * p.width + places[at.lane]] = value;
    }
}
