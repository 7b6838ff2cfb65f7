// Four bits an element, scale and minimum for each 32: y = d q + m.

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets)
@group(0) @binding(4) var<storage, read> scales: array<u32>; // (rows octets / 4), d and m as f16

fn octet(at: u32) -> Octet {
    let w = weights[at];
    let s = unpack2x16float(scales[at >> 2u]);
    return Octet(s.x * nibbles(w) + s.y, s.x * nibbles(w >> 4u) + s.y);
}
