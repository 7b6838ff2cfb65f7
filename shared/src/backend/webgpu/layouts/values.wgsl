
// Of a layout whose `octet` says everything.

fn octet_dot(at: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    let w = octet(at);
    return dot(w.lo, lo) + dot(w.hi, hi);
}
