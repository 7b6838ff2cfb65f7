// Eight consecutive elements of a row of weights: the unit in which every layout is read. `octet` is their values, `octet_dot`
// their product with eight values of x (`values.wgsl`, `scaled.wgsl`), `octet_dots` those of four. What scales there are lie behind the weights: the
// kernel says by `octets_in_all` how many of these are bound, for a device binds few buffers.
struct Octet {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

// The four bytes of a word.
fn bytes(w: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}

// The low nibbles of a word's four bytes; high ones hold the next four elements.
fn nibbles(w: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}
