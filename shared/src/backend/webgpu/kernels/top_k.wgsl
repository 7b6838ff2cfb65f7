// The first k of each tile of 1,024 values in falling order, of equals the earlier; one workgroup a tile. Again
// over what came out, until one tile is left. Values are compared by their bits, made to count upwards: compilers
// may take comparisons of infinities and what is no number to be false.

struct Params {
    count: u32,
    k: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params; // 3
@group(0) @binding(1) var<storage, read> x: array<u32>; // (count) floats at first, then (count, 2) keys and places
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // (tiles, k, 2) keys and places

const TILE = 1024u;
const NONE = 0xffffffffu;

var<workgroup> keys: array<u32, 1024>;
var<workgroup> places: array<u32, 1024>;

// Counts upwards as its float does; 0 for what is no number.
fn key_of(bits: u32) -> u32 {
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn is_before(a: u32, b: u32) -> bool {
    return keys[a] > keys[b] || (keys[a] == keys[b] && places[a] < places[b]);
}

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let tile = min(group_number(at.group, at.groups), (p.count - 1u) / TILE);
    for (var i = at.lane; i < TILE; i += 256u) {
        let source = tile * TILE + i;
        var key = 0u;
        var place = NONE;
        if source < p.count {
            if p.first == 1u {
                key = key_of(x[source]);
                place = source;
            } else {
                key = x[2u * source];
                place = x[2u * source + 1u];
            }
        }
        keys[i] = key;
        places[i] = place;
    }
    // Bitonic sort (Batcher, 1968).
    for (var size = 2u; size <= TILE; size <<= 1u) {
        for (var stride = size >> 1u; stride > 0u; stride >>= 1u) {
            workgroupBarrier();
            for (var pair = at.lane; pair < TILE / 2u; pair += 256u) {
                let low = 2u * pair - (pair & (stride - 1u));
                let high = low + stride;
                let falls = (low & size) == 0u;
                if (falls && is_before(high, low)) || (!falls && is_before(low, high)) {
                    let key = keys[low];
                    let place = places[low];
                    keys[low] = keys[high];
                    places[low] = places[high];
                    keys[high] = key;
                    places[high] = place;
                }
            }
        }
    }
    workgroupBarrier();
    for (var i = at.lane; i < p.k; i += 256u) {
        y[2u * (tile * p.k + i)] = keys[i];
        y[2u * (tile * p.k + i) + 1u] = places[i];
    }
}
