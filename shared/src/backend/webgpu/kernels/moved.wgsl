// Tokens by which a step that is replayed comes later than when it was recorded, modulo 2^32; 0 for what is not replayed.
@group(0) @binding(7) var<uniform> moved: u32; // 1
