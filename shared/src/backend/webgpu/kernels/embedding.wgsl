// Rows of a table of weights; one invocation an octet. Each part of the table writes the rows that it holds.

struct Params {
    octets: u32,    // of a row
    rows: u32,      // in this part
    first_row: u32, // of the part
    width: u32,     // elements of a row
    n: u32,         // rows wanted
}

@group(0) @binding(0) var<uniform> p: Params; // 5
@group(0) @binding(1) var<storage, read> ids: array<u32>; // (n)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, width)

fn octets_in_all() -> u32 {
    return p.rows * p.octets;
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    let n = i / p.octets;
    let o = i % p.octets;
    if n >= p.n {
        return;
    }
    // Ids below first_row wrap to beyond the part.
    let row = ids[n] - p.first_row;
    if row >= p.rows {
        return;
    }
    let values = octet(row * p.octets + o);
    let to = n * p.width + 8u * o;
    for (var j = 0u; j < 4u; j += 1u) {
        if 8u * o + j < p.width {
            y[to + j] = values.lo[j];
        }
        if 8u * o + 4u + j < p.width {
            y[to + 4u + j] = values.hi[j];
        }
    }
}
