// Rows of a table of weights; one invocation an octet. Each part of the table writes the rows that it holds.

struct Params {
    sixteens: u32,  // of a row
    rows: u32,      // in this part
    first_row: u32, // of the part
    width: u32,     // elements of a row
    n: u32,         // rows wanted
}

@group(0) @binding(0) var<uniform> p: Params; // 5
@group(0) @binding(1) var<storage, read> ids: array<u32>; // (n)
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (n, width)

fn sixteens_in_all() -> u32 {
    return p.rows * p.sixteens;
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let i = 64u * group_number(at.group, at.groups) + at.lane;
    let n = i / (2u * p.sixteens);
    let half = i / p.sixteens % 2u;
    let sixteen = i % p.sixteens;
    if n >= p.n {
        return;
    }
    // Ids below first_row wrap to beyond the part.
    let row = ids[n] - p.first_row;
    if row >= p.rows {
        return;
    }
    let values = octet(row * p.sixteens + sixteen, half);
    let element = 4u * first_four(sixteen) + 32u * half;
    let to = n * p.width + element;
    for (var j = 0u; j < 4u; j += 1u) {
        if element + j < p.width {
            y[to + j] = values.lo[j];
        }
        if element + 16u + j < p.width {
            y[to + 16u + j] = values.hi[j];
        }
    }
}
