//! AdamW (Loshchilov and Hutter, 2019), and Muon (Jordan et al., 2024) for the matrices inside of transformers.

mod moments;

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::prelude::*;
use rscapret::{Error, Result, weights::RawTensor};
use serde::{Deserialize, Deserializer, Serialize};

use self::moments::Moments;
use crate::vars::{Vars, raw, values};

/// `[optim]` of a stage's TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// AdamW's step.
    pub lr: f64,
    /// AdamW's decay of the mean.
    pub beta1: f64,
    /// AdamW's decay of the mean square.
    pub beta2: f64,
    /// AdamW's guard against division by nothing.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors have none.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 for no limit.
    pub clip: f64,
    /// Muon's step for matrices inside of transformer layers; 0 to train them with AdamW.
    pub muon_lr: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, clip: 1.0, muon_lr: 0.0 }
    }
}

/// Gradients by the name of their variable: of its shape, on its device, f32.
pub type Gradients = BTreeMap<String, Tensor>;

/// Optimiser with its state: two moments a variable (one for Muon).
pub struct Optim {
    config: OptimConfig,
    steps: u64,
    state: BTreeMap<String, Moments>,
}

/// A matrix inside of a transformer layer, which Muon trains.
fn is_inner_matrix(name: &str, var: &Var) -> bool {
    var.dims().len() == 2 && name.contains("layers.")
}

impl Optim {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// What the device answers.
    pub fn new(config: &OptimConfig, vars: &Vars) -> Result<Self> {
        let moments = |(name, var): (&String, &Var)| {
            let muon = config.muon_lr > 0.0 && is_inner_matrix(name, var);
            Ok((name.clone(), Moments::new(var, muon)?))
        };
        Ok(Optim { config: config.clone(), steps: 0, state: vars.iter().map(moments).collect::<Result<_>>()? })
    }

    /// AdamW's configured step, of which a schedule's factor gives the rate.
    pub fn lr(&self) -> f64 {
        self.config.lr
    }

    /// One step at `factor` of the configured rates (the schedule's). Returns the norm of all gradients.
    ///
    /// # Errors
    /// [`Error::Backend`] for a gradient that is not finite; nothing has changed then.
    pub fn step(&mut self, vars: &Vars, gradients: &Gradients, factor: f64) -> Result<f64> {
        let norm = norm(gradients)?;
        if !norm.is_finite() {
            return Err(Error::Backend(format!(
                "expected finite gradients but found a norm of {norm}\n\
                 lower the learning rate and go on from the last checkpoint, which is intact, with --resume"
            )));
        }
        let scale = if self.config.clip > 0.0 { (self.config.clip / norm.max(1e-12)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let rates = Rates { config: &self.config, steps: self.steps, scale, factor };
        let work: Vec<_> = self
            .state
            .iter_mut()
            .filter_map(|(name, state)| Some((state, vars.get(name)?, gradients.get(name)?)))
            .collect();
        work.into_par_iter().try_for_each(|(state, var, gradient)| state.step(&rates, var, gradient))?;
        Ok(norm)
    }

    /// State as tensors for a checkpoint.
    ///
    /// # Errors
    /// What the device answers.
    pub fn to_raw(&self) -> Result<BTreeMap<String, RawTensor>> {
        let mut out = BTreeMap::from([("steps".to_string(), raw(&[self.steps as f32], &[1]))]);
        for (name, moments) in &self.state {
            for (kind, values) in moments.read()? {
                out.insert(format!("{kind}.{name}"), raw(&values, &[values.len()]));
            }
        }
        Ok(out)
    }

    /// Takes the state of a checkpoint, fetched by `get`.
    ///
    /// # Errors
    /// What `get` answers; another length.
    pub fn restore(&mut self, mut get: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        self.steps = get("steps")?.first().copied().unwrap_or_default() as u64;
        for (name, moments) in &mut self.state {
            moments.restore(|kind| get(&format!("{kind}.{name}"))).map_err(|error| match error {
                Error::Shape { name: kind, expected, found } => {
                    Error::Shape { name: format!("{kind}.{name}"), expected, found }
                }
                other => other,
            })?;
        }
        Ok(())
    }
}

/// Of all gradients together.
fn norm(gradients: &Gradients) -> Result<f64> {
    let mut square = 0.0;
    let mut elsewhere = Vec::new();
    for gradient in gradients.values() {
        if gradient.device().is_cpu() {
            square += values(gradient)?.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        } else {
            elsewhere.push(gradient.sqr()?.sum_all()?);
        }
    }
    // One number a gradient comes back, and all at once: the device is waited for once.
    if !elsewhere.is_empty() {
        square += values(&Tensor::stack(&elsewhere, 0)?)?.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    Ok(square.sqrt())
}

/// What a step is taken by.
struct Rates<'a> {
    config: &'a OptimConfig,
    /// This one among them.
    steps: u64,
    /// Of the gradients, to limit their norm.
    scale: f64,
    /// Of the schedule.
    factor: f64,
}

/// AdamW's numbers for one variable and one step.
struct AdamW {
    b1: f64,
    b2: f64,
    /// What is left of the variable.
    decay: f64,
    /// Of the first moment, its bias corrected.
    step: f64,
    /// Of the second moment.
    second_scale: f64,
    eps: f64,
    /// Of the gradient.
    scale: f64,
}

impl Rates<'_> {
    fn adamw(&self, var: &Var) -> AdamW {
        let (config, steps) = (self.config, self.steps as f64);
        let lr = config.lr * self.factor;
        AdamW {
            b1: config.beta1,
            b2: config.beta2,
            decay: if var.dims().len() > 1 { 1.0 - lr * config.weight_decay } else { 1.0 },
            step: lr / (1.0 - config.beta1.powf(steps)),
            second_scale: 1.0 / (1.0 - config.beta2.powf(steps)),
            eps: config.eps,
            scale: self.scale,
        }
    }
}

/// Momentum 0.95 (Nesterov), made orthogonal by five steps of Newton and Schulz.
fn muon(rates: &Rates<'_>, var: &Var, gradient: &Tensor, first: &mut Tensor) -> Result<()> {
    const MOMENTUM: f64 = 0.95;
    let g = (gradient * rates.scale)?;
    *first = ((&*first * MOMENTUM)? + &g)?;
    let update = orthogonal(&((&*first * MOMENTUM)? + &g)?)?;
    let (rows, columns) = (var.dim(0)?, var.dim(1)?);
    let lr = rates.config.muon_lr * rates.factor;
    let size = lr * (rows as f64 / columns as f64).max(1.0).sqrt();
    let x = ((var.as_detached_tensor() * (1.0 - lr * rates.config.weight_decay))? - (update * size)?)?;
    Ok(var.set(&x)?)
}

/// The nearest matrix with singular values near one; the coefficients are those of Jordan et al.
fn orthogonal(x: &Tensor) -> Result<Tensor> {
    let tall = x.dim(0)? > x.dim(1)?;
    let x = if tall { x.t()?.contiguous()? } else { x.clone() };
    let mut x = x.broadcast_div(&(x.sqr()?.sum_all()?.sqrt()? + 1e-7)?)?;
    for _ in 0..5 {
        let a = x.matmul(&x.t()?)?;
        let b = ((&a * -4.7750)? + (a.matmul(&a)? * 2.0315)?)?;
        x = ((&x * 3.4445)? + b.matmul(&x)?)?;
    }
    Ok(if tall { x.t()?.contiguous()? } else { x })
}

/// How rates fall.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// In a straight line, after a plateau.
    #[default]
    Linear,
    /// As half a wave of the cosine (Loshchilov and Hutter, 2017).
    Cosine,
    /// To a tenth, every so many steps.
    Step,
}

/// Warm-up, plateau, decay to nothing (or in steps): the factor of the rates at `step` of `steps`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Share of the steps at the end that decay; 1 for all, from the first. Not looked at by [`Shape::Step`].
    pub decay: f64,
    /// How they do.
    pub shape: Shape,
    /// Steps between two falls of [`Shape::Step`].
    pub every: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { warmup: 100, decay: 0.4, shape: Shape::Linear, every: FROMAGE_EVERY }
    }
}

/// Ten epochs of Cap-4's 36,111 training images in batches of 180.
const FROMAGE_EVERY: u64 = 2000;

impl Schedule {
    /// FROMAGe's: a tenth every ten epochs, which stand here as steps.
    pub fn fromage() -> Self {
        Schedule { shape: Shape::Step, ..Schedule::default() }
    }

    /// A table, of which what is left out is FROMAGe's.
    ///
    /// # Errors
    /// Unknown keys, values of other types.
    pub fn or_fromage<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Part {
            warmup: Option<u64>,
            decay: Option<f64>,
            shape: Option<Shape>,
            every: Option<u64>,
        }
        let (part, rest) = (Part::deserialize(from)?, Schedule::fromage());
        Ok(Schedule {
            warmup: part.warmup.unwrap_or(rest.warmup),
            decay: part.decay.unwrap_or(rest.decay),
            shape: part.shape.unwrap_or(rest.shape),
            every: part.every.unwrap_or(rest.every),
        })
    }

    /// Factor in 0..=1.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let up = (step + 1) as f64 / self.warmup.max(1) as f64;
        let down = (steps - step.min(steps)) as f64 / (steps as f64 * self.decay).max(1.0);
        let down = match self.shape {
            Shape::Linear => down,
            Shape::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * down.min(1.0)).cos(),
            Shape::Step => 0.1f64.powf((step / self.every.max(1)) as f64),
        };
        up.min(down).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_rises_stays_and_falls() {
        let schedule = Schedule { warmup: 10, decay: 0.5, ..Schedule::default() };
        let at = |step| schedule.factor(step, 100);
        assert_eq!((at(0), at(9), at(40), at(75), at(100)), (0.1, 1.0, 1.0, 0.5, 0.0));
        let schedule = Schedule { warmup: 10, decay: 1.0, shape: Shape::Cosine, ..Schedule::default() };
        let at = |step| (schedule.factor(step, 100) * 1e9).round() / 1e9;
        assert_eq!((at(0), at(50), at(100)), (0.1, 0.5, 0.0));
        assert!(at(25) > 0.85 && at(75) < 0.15, "{} {}", at(25), at(75));
    }

    #[test]
    fn a_step_schedule_falls_to_a_tenth_whatever_the_length() {
        let schedule = Schedule { warmup: 10, every: 30, ..Schedule::fromage() };
        for steps in [60, 100] {
            let at = |step| (schedule.factor(step, steps) * 1e9).round() / 1e9;
            assert_eq!((at(0), at(9), at(29), at(30), at(59)), (0.1, 1.0, 1.0, 0.1, 0.1));
        }
        assert_eq!((schedule.factor(60, 100) * 1e9).round() / 1e9, 0.01);
        // The warm-up of a rate that has fallen already does not raise it again.
        let late = Schedule { warmup: 100, every: 10, ..Schedule::fromage() };
        assert_eq!((late.factor(25, 100) * 1e9).round() / 1e9, 0.01);
    }

    #[test]
    fn orthogonal_matrices_have_singular_values_near_one() {
        let device = candle_core::Device::Cpu;
        let values: Vec<f32> = (0..6 * 4).map(|i| ((i * 7919) % 23) as f32 - 11.0).collect();
        let x = Tensor::from_vec(values, (6, 4), &device).unwrap();
        let q = orthogonal(&x).unwrap();
        let gram = q.t().unwrap().matmul(&q).unwrap().to_vec2::<f32>().unwrap();
        for (i, row) in gram.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                assert!((v - if i == j { 1.0 } else { 0.0 }).abs() < 0.55, "({i}, {j}): {v}");
            }
        }
    }

    #[test]
    fn adamw_follows_its_formula() {
        let device = candle_core::Device::Cpu;
        let var = Var::from_tensor(&Tensor::new(&[[1f32, -2.0]], &device).unwrap()).unwrap();
        let vars = Vars::from([("w".to_string(), var)]);
        let config = OptimConfig { lr: 0.1, weight_decay: 0.5, clip: 0.0, ..OptimConfig::default() };
        let mut optim = Optim::new(&config, &vars).unwrap();
        let gradient = Tensor::new(&[[0.5f32, -0.25]], &device).unwrap();
        optim.step(&vars, &Gradients::from([("w".to_string(), gradient)]), 1.0).unwrap();
        // The first step of Adam is the sign of the gradient, whatever its size.
        let found = values(&vars["w"]).unwrap();
        for (found, expected) in found.iter().zip([0.95 - 0.1, -1.9 + 0.1]) {
            assert!((found - expected).abs() < 1e-5, "{found} but {expected}");
        }
    }
}
