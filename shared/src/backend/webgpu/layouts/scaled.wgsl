
// Of a layout of `quants` and a `scale` for all eight: y = d q.

fn octet(at: u32) -> Octet {
    let q = quants(at);
    let d = scale(at);
    return Octet(d * q.lo, d * q.hi);
}

fn octet_dot(at: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    let q = quants(at);
    return scale(at) * (dot(q.lo, lo) + dot(q.hi, hi));
}
