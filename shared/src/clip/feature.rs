//! What is taken of the vision tower: its class token, or patches beside it.

use super::config::ClipVisionConfig;
use crate::{
    backend::{Backend, Mask},
    error::{Error, Result},
};

/// Which of the tower's outputs are a picture's features: one row of vectors of the tower's width C, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageFeature {
    /// The class token after the final norm (C): `pooler_output`.
    #[default]
    Class,
    /// That, and behind it the patches, row by row ((1 + g g) C). They are hidden states of the second-to-last layer without
    /// the class token, as in LLaVA (Liu et al., 2023), for what the last layer gives at patches no contrastive loss has
    /// seen; squares of them are averaged.
    Patches {
        /// Side g of the grid of averages, from 1 to [`ImageFeature::MAX_GRID`].
        grid: usize,
    },
}

impl ImageFeature {
    /// More a side than any tower has patches, or a language model room for.
    pub const MAX_GRID: usize = 64;

    /// Vectors of a picture's features: 1, or 1 + g g.
    pub fn vectors(self) -> usize {
        match self {
            ImageFeature::Class => 1,
            ImageFeature::Patches { .. } => self.captioned().saturating_add(1),
        }
    }

    /// How many of them the caption is made from: the class token, or the g g patches.
    pub fn captioned(self) -> usize {
        match self {
            ImageFeature::Class => 1,
            ImageFeature::Patches { grid } => grid.saturating_mul(grid),
        }
    }

    /// Whether a tower of this shape has them.
    ///
    /// # Errors
    /// [`Error::Config`] for a grid that is none, or one whose squares are no whole patches.
    pub fn check(self, tower: &ClipVisionConfig) -> Result<()> {
        let ImageFeature::Patches { grid } = self else { return Ok(()) };
        let side = tower.patches_per_side();
        if (1..=Self::MAX_GRID).contains(&grid) && side > 0 && side.is_multiple_of(grid) {
            return Ok(());
        }
        let whole: Vec<String> = (1..=side.min(Self::MAX_GRID))
            .filter(|grid| side.is_multiple_of(*grid))
            .map(|grid| grid.to_string())
            .collect();
        Err(Error::Config(format!(
            "expected `patch_grid` to divide the {side} patches of a side of the tower's pictures but found {grid}\n\
             take one of {}",
            whole.join(", ")
        )))
    }
}

/// Averages over squares of patches: all tokens of the tower (B, 1 + P, D), the class token first -> (B, g g, D), row by row.
/// `side` patches a side are a multiple of `grid`; `heads` divide D as they do in the tower.
pub(super) fn averages<B: Backend>(
    backend: &B,
    hidden: &B::Tensor,
    side: usize,
    grid: usize,
    heads: usize,
) -> Result<B::Tensor> {
    let shape = backend.shape(hidden);
    let (batch, tokens, d) = (shape[0], shape[1], shape[2]);
    let rows = backend.reshape(hidden, &[batch * tokens, d])?;
    let of_squares = backend.index_rows(&rows, &square_rows(batch, tokens, side, grid))?;
    let (squares, inside) = (batch * grid * grid, (side / grid) * (side / grid));
    if inside == 1 {
        return backend.reshape(&of_squares, &[batch, grid * grid, d]);
    }
    // A query of zeros looks at all patches of its square alike, and what it gets of them is their mean.
    let of_squares = backend.reshape(&of_squares, &[squares, inside, heads, d / heads])?;
    let alike = backend.upload(&vec![0.0; squares * d], &[squares, 1, heads, d / heads])?;
    let alike = backend.attention(&alike, &of_squares, &of_squares, Mask::None)?;
    backend.reshape(&alike, &[batch, grid * grid, d])
}

/// Rows of (B (1 + P)) square by square, and patch by patch in each.
fn square_rows(batch: usize, tokens: usize, side: usize, grid: usize) -> Vec<u32> {
    let inside = side / grid;
    let mut rows = Vec::with_capacity(batch * side * side);
    for picture in 0..batch {
        for square in 0..grid * grid {
            for patch in 0..inside * inside {
                let y = square / grid * inside + patch / inside;
                let x = square % grid * inside + patch % inside;
                // The class token stands before the patches.
                rows.push((picture * tokens + 1 + y * side + x) as u32);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use super::*;
    use crate::Candle;

    #[test]
    fn squares_are_averaged_row_by_row() {
        let cpu = Candle::cpu();
        // The class token is 1000; a patch is its place, and ten times that; of the second picture 100 more.
        let (side, d) = (4, 4);
        let mut values = Vec::new();
        for picture in 0..2 {
            values.extend([1000.0; 4]);
            for place in 0..side * side {
                let value = (place + 100 * picture) as f32;
                values.extend([value, 10.0 * value, -value, 0.0]);
            }
        }
        let hidden = cpu.upload(&values, &[2, 1 + side * side, d]).unwrap();
        let means = |grid: usize| {
            let found = averages(&cpu, &hidden, side, grid, 2).unwrap();
            assert_eq!(cpu.shape(&found), [2, grid * grid, d]);
            let found = block_on(cpu.read(&found)).unwrap();
            let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
            for row in found.chunks_exact(d) {
                assert!(near(row[1], 10.0 * row[0]) && near(row[2], -row[0]) && row[3] == 0.0, "{row:?}");
            }
            found.chunks_exact(d).map(|row| (10.0 * row[0]).round() / 10.0).collect::<Vec<f32>>()
        };
        assert_eq!(means(1), [7.5, 107.5]);
        assert_eq!(means(2), [2.5, 4.5, 10.5, 12.5, 102.5, 104.5, 110.5, 112.5]);
        assert_eq!(means(4), (0..16).chain(100..116).map(|place| place as f32).collect::<Vec<_>>());
    }

    #[test]
    fn a_grid_divides_the_patches_of_a_side() {
        let tower = ClipVisionConfig { image_size: 96, patch_size: 16, ..ClipVisionConfig::default() };
        for grid in [1, 2, 3, 6] {
            ImageFeature::Patches { grid }.check(&tower).unwrap();
            assert_eq!(ImageFeature::Patches { grid }.vectors(), 1 + grid * grid);
        }
        for grid in [0, 4, 7, 12, usize::MAX] {
            let feature = ImageFeature::Patches { grid };
            let error = feature.check(&tower).unwrap_err().to_string();
            assert!(error.contains("the 6 patches of a side") && error.ends_with("take one of 1, 2, 3, 6"), "{error}");
            assert!(feature.vectors() > feature.captioned() || grid == usize::MAX);
        }
        ImageFeature::Class.check(&tower).unwrap();
        assert_eq!((ImageFeature::Class.vectors(), ImageFeature::Class.captioned()), (1, 1));
    }
}
