// Pictures (batch, 3, height, width) to rows of patches, channels outermost inside a row.

struct Params {
    n: u32, // elements
    side: u32, // of a patch
    across: u32,   // patches
    down: u32,     // patches
    channels: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 5
@group(0) @binding(1) var<storage, read> x: array<f32>; // (batch, channels, down patch, across patch)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (batch, down across, channels patch patch)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    let column = i % p.side;
    let row = i / p.side % p.side;
    let above = i / (p.side * p.side);
    let channel = above % p.channels;
    let place = above / p.channels % (p.across * p.down);
    let picture = above / p.channels / (p.across * p.down);
    let line = place / p.across * p.side + row;
    let source = ((picture * p.channels + channel) * p.down * p.side + line) * p.across * p.side;
    y[i] = x[source + place % p.across * p.side + column];
}
