// The RMS norm of few rows of x by three matrices at once: queries, rotated; keys, rotated, and values into the cache. A
// workgroup takes four rows of one matrix, two pairs that are rotated. What a row of x is divided by, it finds on its way,
// and divides the sums.

struct Params {
    sixteens: u32, // of a row of each
    tokens: u32,
    heads: u32,
    groups: u32, // heads of keys, and of values
    width: u32, // elements of a head
    start: u32, // position of the first token
    interleaved: u32, // 0: pairs (i, i + width / 2); 1: pairs (2 i, 2 i + 1)
    capacity: u32,
    positions: u32, // of the table
    eps: f32,
    fours: u32, // of a row of x
}

@group(0) @binding(0) var<uniform> p: Params; // 11
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (batch, tokens, fours)
@group(0) @binding(2) var<storage, read_write> q: array<f32>; // (batch, tokens, heads, width)
@group(0) @binding(6) var<storage, read_write> cache: array<f32>; // (batch, 2 groups, capacity, width)
@group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>; // (fours)
@group(0) @binding(9) var<storage, read> rope: array<f32>; // (2, positions, width / 2)

const LANES = 64u;
// Of four rows.
const PARTS = 4u;
alias Sums = vec4<f32>;

fn sixteens_in_all_0() -> u32 {
    return p.heads * p.width * p.sixteens;
}

fn sixteens_in_all_1() -> u32 {
    return p.groups * p.width * p.sixteens;
}

fn sixteens_in_all_2() -> u32 {
    return p.groups * p.width * p.sixteens;
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
    let r = (own * p.width + inside) * p.sixteens;
    let first = select(vec3<u32>(p.sixteens), vec3<u32>(at.lane), vec3<u32>(0u, 1u, 2u) == vec3<u32>(which));
    let of_0 = row_sums_0(r, n, first.x);
    let of_1 = row_sums_1(r, n, first.y);
    let of_2 = row_sums_2(r, n, first.z);
    let squares = of_0.squares + of_1.squares + of_2.squares;
    let summed = workgroup_sums(of_0.sums + of_1.sums + of_2.sums, squares, at);
    if at.lane >= 4u || number >= quads * (p.heads + 2u * p.groups) {
        return;
    }
    var four = summed.sums / sqrt(summed.squares / f32(4u * p.fours) + p.eps);
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
