// Index of a row's largest value, the first of equals; one workgroup a row. A value that is no number
// or infinite is told by 0xffffffff, as is a row that leaves no choice.

const LANES = 256u;

struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 2
@group(0) @binding(1) var<storage, read> x: array<f32>; // (rows, width)
@group(0) @binding(2) var<storage, read> mask: array<f32>; // (width), 0 for what may be chosen
@group(0) @binding(3) var<storage, read_write> y: array<u32>; // (rows)

const NONE = 0xffffffffu;
const LOWEST = -3.4e38;

var<workgroup> values: array<f32, LANES>;
var<workgroup> places: array<u32, LANES>;
var<workgroup> odd: atomic<u32>;

@compute @workgroup_size(LANES)
fn main(at: Invocation) {
    let row = min(group_number(at.group, at.groups), p.rows - 1u);
    var best = LOWEST;
    var place = NONE;
    for (var i = at.lane; i < p.width; i += 4u * LANES) {
        let four = four_of_row(row * p.width, i);
        let columns = vec4<u32>(i) + LANES * vec4<u32>(0u, 1u, 2u, 3u);
        let c = min(columns, vec4<u32>(p.width - 1u));
        let masked = vec4<f32>(mask[c.x], mask[c.y], mask[c.z], mask[c.w]) != vec4<f32>();
        for (var j = 0u; j < 4u; j += 1u) {
            if masked[j] || columns[j] >= p.width {
                continue;
            }
            let value = four[j];
            // By their bits, for compilers may take comparisons of such values to be false.
            let bits = bitcast<u32>(value);
            if (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u {
                atomicOr(&odd, 1u);
            }
            if value > best {
                best = value;
                place = columns[j];
            }
        }
    }
    values[at.lane] = best;
    places[at.lane] = place;
    for (var width = LANES / 2u; width > 0u; width >>= 1u) {
        workgroupBarrier();
        if at.lane < width {
            let other = values[at.lane + width];
            let there = places[at.lane + width];
            if other > values[at.lane] || (other == values[at.lane] && there < places[at.lane]) {
                values[at.lane] = other;
                places[at.lane] = there;
            }
        }
    }
    workgroupBarrier();
    if at.lane == 0u {
        y[row] = select(places[0], NONE, atomicLoad(&odd) == 1u);
    }
}
