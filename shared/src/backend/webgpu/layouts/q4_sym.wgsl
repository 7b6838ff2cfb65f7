// Four bits an element, an f16 scale for each 32: y = d (q - 8).

@group(0) @binding(3) var<storage, read> weights: array<u32>; // (rows, octets)
@group(0) @binding(4) var<storage, read> scales: array<u32>; // (rows octets / 8), two f16 each

fn octet(at: u32) -> Octet {
    let w = weights[at];
    let pair = unpack2x16float(scales[at >> 3u]);
    let d = select(pair.x, pair.y, (at & 4u) != 0u);
    return Octet(d * (nibbles(w) - 8.0), d * (nibbles(w >> 4u) - 8.0));
}
