// How rows of weights are read. A row is stripes of 64 elements, the last one filled up with zeros: 16 fours, in the order of the
// row. Four neighbouring invocations read a stripe, each of them a *sixteen*: s, that is its place in the stripe, has the fours
// s, 4 + s, 8 + s and 12 + s; so what neighbours read of x at once are neighbours, too. Its first two fours are one *octet* and
// its last two another, each of one block of 32. `matmul` and `embedding` ask for an `octet`, by its sixteen and its half of it;
// kernels for few rows of x read as much at once as they can, and ask for `sixteen_dots`, the products of four rows with as much
// of x. What stands beside the weights lies behind them: the kernel says by `sixteens_in_all` how many of these are bound, for a
// device binds few buffers.
struct Octet {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

// A four each.
alias Sixteen = mat4x4<f32>;

// Number of the first four of a sixteen.
fn first_four(sixteen: u32) -> u32 {
    return 4u * sixteen - 3u * (sixteen & 3u);
}

fn octet_dot(w: Octet, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    return dot(w.lo, lo) + dot(w.hi, hi);
}

// d w + m.
fn shifted(d: f32, m: f32, w: Octet) -> Octet {
    return Octet(d * w.lo + m, d * w.hi + m);
}

// Bits become a number without a conversion, of which GPUs do few at a time: below the exponent of a power of two they are
// added to it, in units that the exponent chooses. These are the powers of which bits from 0, 4, 8 and 12 on are units.
const POWERS = vec4<f32>(8388608.0, 524288.0, 32768.0, 2048.0);
const EXPONENTS = vec4<u32>(0x4b000000u, 0x49000000u, 0x47000000u, 0x45000000u); // their bits
const NIBBLES = vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u);

fn below_powers(bits: vec4<u32>, powers: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits | EXPONENTS) - powers;
}

// The four bytes of a word, less 128.
fn bytes(w: u32) -> vec4<f32> {
    let bits = vec4<u32>(vec2<u32>(w), vec2<u32>(w >> 16u)) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u);
    return bitcast<vec4<f32>>(bits | EXPONENTS.xzxz) - (POWERS.xzxz + 128.0);
}

// The low four nibbles of a word, less what `powers` is more than POWERS.
fn four_nibbles(w: u32, powers: vec4<f32>) -> vec4<f32> {
    return below_powers(vec4<u32>(w) & NIBBLES, powers);
}

// All eight.
fn nibbles(w: u32, powers: vec4<f32>) -> Octet {
    return Octet(four_nibbles(w, powers), four_nibbles(w >> 16u, powers));
}

// The low four nibbles with bits above each of them, those of `upper` that `mask` leaves.
fn four_widened(w: u32, upper: u32, mask: vec4<u32>, powers: vec4<f32>) -> vec4<f32> {
    return below_powers((vec4<u32>(w) & NIBBLES) | (vec4<u32>(upper) & mask), powers);
}
