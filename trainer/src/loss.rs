//! Losses.

use candle_core::{D, DType, Tensor, Var};
use rscapret::Result;

use crate::vars::values;

/// Symmetric InfoNCE of a whole batch and its gradients, by the embeddings' values alone: the workers carry the
/// gradients on into their own graphs (Gao et al., 2021, "GradCache").
pub struct Contrast {
    /// (L_i2t + L_t2i) / 2.
    pub loss: f64,
    /// By image embedding (B, J).
    image: Tensor,
    /// By text embedding (B, J).
    text: Tensor,
    /// Where each part's rows start.
    starts: Vec<usize>,
    /// By the logarithm of the scale.
    pub logit_scale: f32,
    /// Share of images whose own text is the nearest.
    pub accuracy: f64,
}

impl Contrast {
    /// A scalar whose gradients are those of the loss by way of part `at`'s embeddings (b, J), in that part's own graph.
    ///
    /// # Errors
    /// What the device answers.
    pub fn carried(&self, at: usize, image: &Tensor, text: &Tensor) -> Result<Tensor> {
        let rows = |gradient: &Tensor| gradient.narrow(0, self.starts[at], image.dim(0)?);
        Ok(((image * rows(&self.image)?)?.sum_all()? + (text * rows(&self.text)?)?.sum_all()?)?)
    }
}

/// How equal texts in one batch count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SameString {
    /// All are right answers, with equal shares.
    Positive,
    /// They are no wrong answers: left out of the denominator.
    Masked,
}

/// Unit embeddings of images and texts, in parts of (b, J) each, B rows in all; `equal[i]` names the string of text `i`.
///
/// # Errors
/// What the device answers.
pub fn info_nce(parts: &[(&Tensor, &Tensor)], logit_scale: f32, equal: &[usize], rule: SameString) -> Result<Contrast> {
    let (images, texts): (Vec<&Tensor>, Vec<&Tensor>) = parts.iter().copied().unzip();
    let mut starts = Vec::with_capacity(parts.len());
    let mut n = 0;
    for image in &images {
        starts.push(n);
        n += image.dim(0)?;
    }
    let image = Var::from_tensor(&Tensor::cat(&images, 0)?.detach())?;
    let text = Var::from_tensor(&Tensor::cat(&texts, 0)?.detach())?;
    let device = image.device();
    let scale = Var::new(logit_scale, device)?;
    let logits = image.as_tensor().matmul(&text.t()?)?.broadcast_mul(&scale.exp()?)?;
    let same = |i: usize, j: usize| equal[i] == equal[j];
    let (mut targets, mut mask) = (vec![0f32; n * n], vec![0f32; n * n]);
    for i in 0..n {
        let count = (0..n).filter(|&j| same(i, j)).count() as f32;
        for j in 0..n {
            match rule {
                SameString::Positive if same(i, j) => targets[i * n + j] = 1.0 / count,
                SameString::Masked if i == j => targets[i * n + j] = 1.0,
                SameString::Masked if same(i, j) => mask[i * n + j] = -1e9,
                _ => {}
            }
        }
    }
    let targets = Tensor::from_vec(targets, (n, n), device)?;
    let logits = (logits + Tensor::from_vec(mask, (n, n), device)?)?;
    let one_way = |logits: &Tensor| -> Result<Tensor> {
        Ok((log_softmax(logits)? * &targets)?.sum_all()?.affine(-1.0 / n as f64, 0.0)?)
    };
    let loss = ((one_way(&logits)? + one_way(&logits.t()?)?)? * 0.5)?;
    let gradients = loss.backward()?;
    let nearest = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let hits = nearest.iter().enumerate().filter(|&(i, &j)| same(i, j as usize)).count();
    let gradient = |var: &Var| -> Result<Tensor> {
        Ok(match gradients.get(var.as_tensor()) {
            Some(gradient) => gradient.clone(),
            None => var.zeros_like()?,
        })
    };
    Ok(Contrast {
        loss: f64::from(loss.to_scalar::<f32>()?),
        image: gradient(&image)?,
        text: gradient(&text)?,
        starts,
        logit_scale: values(&gradient(&scale)?)?.first().copied().unwrap_or_default(),
        accuracy: hits as f64 / n as f64,
    })
}

/// ln softmax over the innermost dimension, differentiable on every device.
///
/// # Errors
/// What the device answers.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Mean cross-entropy, in f32, of logits (N, V) with label smoothing (Szegedy et al., 2016); rows without a label are left
/// out.
/// The sum is divided by `count`, so that shares of a batch add up to the whole batch's mean.
///
/// # Errors
/// What the device answers.
pub fn cross_entropy(logits: &Tensor, labels: &[Option<u32>], smoothing: f64, count: usize) -> Result<Tensor> {
    let device = logits.device();
    let rows: Vec<u32> = (0..labels.len() as u32).filter(|&i| labels[i as usize].is_some()).collect();
    let targets: Vec<u32> = labels.iter().flatten().copied().collect();
    if rows.is_empty() {
        return Ok((logits.to_dtype(DType::F32)?.sum_all()? * 0.0)?);
    }
    let n = rows.len();
    let logits =
        if n == labels.len() { logits.clone() } else { logits.index_select(&Tensor::from_vec(rows, n, device)?, 0)? };
    let log_p = log_softmax(&logits.to_dtype(DType::F32)?)?;
    let picked = log_p.gather(&Tensor::from_vec(targets, (n, 1), device)?, 1)?.sum_all()?;
    let loss = if smoothing > 0.0 {
        let even = (log_p.sum_all()? * (smoothing / logits.dim(1)? as f64))?;
        ((picked * (1.0 - smoothing))? + even)?
    } else {
        picked
    };
    Ok(loss.affine(-1.0 / count as f64, 0.0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn smoothing_gives_each_label_its_share() {
        let logits = Tensor::new(&[[2f32, 1.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 3.0]], &Device::Cpu).unwrap();
        let loss = |smoothing: f64, labels: &[Option<u32>], count: usize| {
            f64::from(cross_entropy(&logits, labels, smoothing, count).unwrap().to_scalar::<f32>().unwrap())
        };
        let labels = [Some(0), None, Some(2)];
        // 0.9 of -ln p(label) and 0.1 of the mean of -ln p, as PyTorch defines it.
        assert!((loss(0.1, &labels, 2) - 0.401_264_460_4).abs() < 1e-6, "{}", loss(0.1, &labels, 2));
        // All of it: the mean over the vocabulary, whatever the label.
        assert!((loss(1.0, &labels, 2) - loss(1.0, &[Some(1), None, Some(0)], 2)).abs() < 1e-6);
        // Of a row where all are alike, ln 3 with and without.
        for smoothing in [0.0, 0.3] {
            assert!((loss(smoothing, &[None, Some(1), None], 1) - 3f64.ln()).abs() < 1e-6);
        }
    }
}
