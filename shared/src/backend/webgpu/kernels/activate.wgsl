// The activations of CLIP's MLPs: 1 is x sigmoid(1.702 x), 2 is x Phi(x), 0 is none.

// The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - series * exp(-x * x));
}

fn activate(x: f32, kind: u32) -> f32 {
    if kind == 1u {
        // The exponential ends before it is infinite, as on the CPU.
        return x / (1.0 + exp(min(-1.702 * x, 80.0)));
    }
    if kind == 2u {
        return 0.5 * x * (1.0 + erf(x * 0.70710678));
    }
    return x;
}
