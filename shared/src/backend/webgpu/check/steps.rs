//! A step of decoding when it is recorded and when it is replayed.

use super::{
    fused::{HEADS, attention, both, tables},
    nmse,
    products::{dense, matrix},
};
use crate::{
    backend::{
        Backend, Candle, RopeLayout, WebGpu,
        webgpu::{Recording, Tensor},
    },
    error::{Error, Result},
    weights::Dtype,
};

/// A row of a table, chosen on the device, and attention over a cache that grows, and is cut: through the kernel that joins
/// matrices, and through those that rotate, append and attend by themselves.
pub async fn steps_that_are_replayed(gpu: &WebGpu) -> Result<()> {
    // What is poisoned is written to in the midst of a step, which is not kept then.
    gpu.gpu.memory.guard.set(0);
    let (heads, groups, head_dim) = HEADS;
    let (cpu, vocabulary) = (Candle::cpu(), 20);
    for (width, layout, capacity) in [(64, RopeLayout::Half, 300), (60, RopeLayout::Interleaved, 128)] {
        let (there_table, here_table) = both(gpu, 9, Dtype::F32, vocabulary, width)?;
        let (mut there_weights, mut here_weights) = (Vec::new(), Vec::new());
        for (seed, heads) in (0..).zip([heads, groups, groups]) {
            let raw = matrix(seed, Dtype::F32, heads * head_dim, width)?;
            there_weights.push(gpu.upload_matrix(&raw)?);
            here_weights.push(dense(&cpu, &raw)?);
        }
        let (there_tables, here_tables) = (tables(gpu, capacity, width, 1.0)?, tables(&cpu, capacity, width, 1.0)?);
        let of_gpu = attention::<WebGpu>(&there_weights, &there_tables, layout);
        let of_cpu = attention::<Candle>(&here_weights, &here_tables, layout);
        let mut there = gpu.cache(1, groups, capacity, head_dim)?;
        let mut here = cpu.cache(1, groups, capacity, head_dim)?;
        let mask = gpu.upload(&vec![0.0; vocabulary], &[vocabulary])?;

        let (mut place, mut recorded) = (None, None::<(Recording, Tensor)>);
        // Past the 64 keys that a workgroup looks at in one go at the least, then from before where it was recorded, 7.
        let positions = (7..capacity.min(140)).chain(2..5);
        for (step, position) in positions.enumerate() {
            let id = step * 3 % vocabulary;
            let mut one = vec![0.0; vocabulary];
            one[id] = 1.0;
            let Some(chosen) = gpu.choose(&gpu.upload(&one, &[1, vocabulary])?, &mask, place.as_ref())? else {
                return Err(Error::Backend("expected ids on the device but found none".into()));
            };
            let found = match &recorded {
                Some((recording, y)) => {
                    let done = gpu.replay(recording, &chosen.ids, position as i64 - 7)?;
                    ensure!(done, "expected a step that reads what it was recorded with to be replayed");
                    y.clone()
                }
                None => {
                    let (y, recording) = gpu.record(&chosen.ids, || {
                        let x = gpu.reshape(&gpu.embedding_of(&there_table, &chosen.ids)?, &[1, 1, width])?;
                        gpu.self_attention(Some(&mut there), &x, &of_gpu, position)
                    })?;
                    let Some(recording) = recording else {
                        return Err(Error::Backend("expected a step to be kept but found none".into()));
                    };
                    recorded = Some((recording, y.clone()));
                    y
                }
            };
            let x = cpu.reshape(&cpu.embedding(&here_table, &[id as u32])?, &[1, 1, width])?;
            let expected = cpu.self_attention(Some(&mut here), &x, &of_cpu, position)?;
            let error = nmse(&gpu.read(&found).await?, &cpu.read(&expected).await?)?;
            ensure!(error <= 1e-5, "{layout:?} at {position}: expected an error of at most 1e-5 but found {error:e}");
            place = Some(chosen.ids);
        }
    }
    Ok(())
}
