// Rows of `inner` elements from one place to another, perhaps further apart there; padding is zeros.

struct Params {
    n: u32,      // elements written
    inner: u32,  // written of each row
    filled: u32, // of these copied, the rest zeros
    source: u32,   // first element
    apart: u32,  // from row to row in x; 0 repeats one
    to: u32,     // first element
    stride: u32, // from row to row in y
}

@group(0) @binding(0) var<uniform> p: Params; // 7
@group(0) @binding(1) var<storage, read> x: array<f32>; // (rows, apart)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (rows, stride)

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    if i >= p.n {
        return;
    }
    let row = i / p.inner;
    let j = i % p.inner;
    var value = 0.0;
    if j < p.filled {
        value = x[p.source + row * p.apart + j];
    }
    y[p.to + row * p.stride + j] = value;
}
