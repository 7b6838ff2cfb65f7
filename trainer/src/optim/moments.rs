//! The state of one variable: on the CPU as numbers that one loop goes through, on a GPU as tensors that never leave it.

use candle_core::{Tensor, Var};
use rscapret::{Error, Result};

use super::{AdamW, Rates, muon};
use crate::vars::values;

/// What the optimiser remembers of a variable's gradients.
pub(super) enum Moments {
    /// Their mean and their mean square.
    Host(Vec<f32>, Vec<f32>),
    /// The same, on the device.
    Device(Tensor, Tensor),
    /// Muon's one, wherever the variable is.
    Muon(Tensor),
}

impl Moments {
    pub fn new(var: &Var, muon: bool) -> Result<Self> {
        let zeros = || vec![0f32; var.elem_count()];
        Ok(match (muon, var.device().is_cpu()) {
            (true, _) => Moments::Muon(var.zeros_like()?),
            (false, true) => Moments::Host(zeros(), zeros()),
            (false, false) => Moments::Device(var.zeros_like()?, var.zeros_like()?),
        })
    }

    /// Moves the variable.
    pub fn step(&mut self, rates: &Rates<'_>, var: &Var, gradient: &Tensor) -> Result<()> {
        match self {
            Moments::Host(first, second) => on_host(&rates.adamw(var), var, &values(gradient)?, first, second),
            Moments::Device(first, second) => on_device(&rates.adamw(var), var, gradient, first, second),
            Moments::Muon(first) => muon(rates, var, gradient, first),
        }
    }

    /// Their kinds and values, for a checkpoint.
    pub fn read(&self) -> Result<Vec<(&'static str, Vec<f32>)>> {
        Ok(match self {
            Moments::Host(first, second) => vec![("first", first.clone()), ("second", second.clone())],
            Moments::Device(first, second) => vec![("first", values(first)?), ("second", values(second)?)],
            Moments::Muon(first) => vec![("first", values(first)?)],
        })
    }

    /// Takes those of a checkpoint, by their kinds.
    ///
    /// # Errors
    /// What `get` answers; [`Error::Shape`] of a kind for another length.
    pub fn restore(&mut self, mut get: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        let mut fetch = |kind: &str, len: usize| {
            let found = get(kind)?;
            if found.len() == len {
                return Ok(found);
            }
            Err(Error::Shape { name: kind.to_string(), expected: vec![len], found: vec![found.len()] })
        };
        match self {
            Moments::Host(first, second) => {
                (*first, *second) = (fetch("first", first.len())?, fetch("second", second.len())?);
            }
            Moments::Device(first, second) => {
                for (kind, slot) in [("first", first), ("second", second)] {
                    *slot = Tensor::from_vec(fetch(kind, slot.elem_count())?, slot.shape(), slot.device())?;
                }
            }
            Moments::Muon(first) => {
                *first = Tensor::from_vec(fetch("first", first.elem_count())?, first.shape(), first.device())?;
            }
        }
        Ok(())
    }
}

fn on_host(adamw: &AdamW, var: &Var, gradient: &[f32], first: &mut [f32], second: &mut [f32]) -> Result<()> {
    let mut x = values(var)?;
    let (b1, b2) = (adamw.b1 as f32, adamw.b2 as f32);
    let (decay, step, second_scale) = (adamw.decay as f32, adamw.step as f32, adamw.second_scale as f32);
    let (scale, eps) = (adamw.scale as f32, adamw.eps as f32);
    for (((x, g), m), v) in x.iter_mut().zip(gradient).zip(first).zip(second) {
        let g = g * scale;
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *x = *x * decay - step * *m / ((*v * second_scale).sqrt() + eps);
    }
    Ok(var.set(&Tensor::from_vec(x, var.dims(), var.device())?)?)
}

/// The same of whole tensors.
fn on_device(adamw: &AdamW, var: &Var, gradient: &Tensor, first: &mut Tensor, second: &mut Tensor) -> Result<()> {
    let g = (gradient * adamw.scale)?;
    *first = ((&*first * adamw.b1)? + (&g * (1.0 - adamw.b1))?)?;
    *second = ((&*second * adamw.b2)? + (g.sqr()? * (1.0 - adamw.b2))?)?;
    let step = ((&*first * adamw.step)? / ((&*second * adamw.second_scale)?.sqrt()? + adamw.eps)?)?;
    Ok(var.set(&((var.as_detached_tensor() * adamw.decay)? - step)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::optim::OptimConfig;

    /// What a GPU does, on the CPU: the same steps, and the same state in a checkpoint and out of it.
    #[test]
    fn steps_on_a_device_are_those_of_the_host() {
        let start = Tensor::new(&[[1f32, -2.0, 0.5], [0.0, 3.0, -0.25]], &Device::Cpu).unwrap();
        let vars =
            [Var::from_tensor(&start.copy().unwrap()).unwrap(), Var::from_tensor(&start.copy().unwrap()).unwrap()];
        let config = OptimConfig { lr: 0.1, weight_decay: 0.5, ..OptimConfig::default() };
        let zeros = start.zeros_like().unwrap();
        let mut states = [Moments::new(&vars[0], false).unwrap(), Moments::Device(zeros.clone(), zeros.clone())];
        assert!(matches!(states[0], Moments::Host(..)));
        for steps in 1..=5 {
            let gradient = (start.sin().unwrap() * steps as f64).unwrap();
            let rates = Rates { config: &config, steps, scale: 0.7, factor: 0.9 };
            for (state, var) in states.iter_mut().zip(&vars) {
                state.step(&rates, var, &gradient).unwrap();
            }
            if steps == 3 {
                let read = states[0].read().unwrap();
                states[1] = Moments::Device(zeros.clone(), zeros.clone());
                let get = |kind: &str| Ok(read.iter().find(|(name, _)| *name == kind).unwrap().1.clone());
                states[1].restore(get).unwrap();
                assert!(states[1].restore(|_| Ok(vec![0.0])).is_err());
            }
        }
        let (host, device) = (values(&vars[0]).unwrap(), values(&vars[1]).unwrap());
        for (host, device) in host.iter().zip(&device) {
            assert!((host - device).abs() < 1e-6, "{host} {device}");
        }
        assert!((host[0] - 1.0).abs() > 0.1);
    }
}
