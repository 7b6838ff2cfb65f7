//! A GPU that is lost, too small, or stopped, while it works on a whole model.

use pollster::block_on;
use rscapret::{
    Backend, Candle, Error, WebGpu,
    backend::webgpu::Options,
    caption::{Captioner, DecodeOptions},
};
use rscapret_tests::models::{album, load_demo, open_gpu};

fn caption<B: Backend>(captioner: &Captioner<B>) -> String {
    let features = captioner.features(&album(40)[..1]).unwrap();
    block_on(captioner.caption(&features, &DecodeOptions::default())).unwrap()
}

#[test]
fn a_device_that_is_lost_amid_a_caption_says_so_and_another_one_goes_on() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let captioner = load_demo(gpu.clone()).unwrap();
    let features = captioner.features(&album(40)[..1]).unwrap();
    let mut stream = captioner.stream(&features, &DecodeOptions::default()).unwrap();
    for _ in 0..3 {
        block_on(stream.next()).unwrap().expect("a caption of more than three tokens");
    }
    gpu.close();
    // The token whose choice was sent before may still come.
    let error = block_on(async {
        for _ in 0..2 {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
        panic!("a device that is gone goes on");
    });
    assert!(matches!(&error, Error::Backend(text) if text.starts_with("expected the GPU")), "{error}");
    assert!(block_on(gpu.check()).is_err());
    drop(stream);

    let again = load_demo(open_gpu(Options::default()).unwrap()).unwrap();
    assert_eq!(caption(&again), caption(&load_demo(Candle::cpu()).unwrap()));
}

#[test]
fn a_gpu_that_is_too_small_says_so_and_nothing_stays_on_it() {
    let small = Options { max_memory: Some(4 << 20), ..Options::default() };
    let Some(gpu) = open_gpu(small) else { return };
    let error = load_demo(gpu.clone()).err().expect("13 MB are not 4");
    assert!(error.to_string().contains("expected enough memory on the GPU but found less"), "{error}");
    // It works, and what was loaded of the model is gone.
    block_on(gpu.check()).unwrap();
    let left = gpu.counters().bytes;
    assert!(left < 1 << 16, "{left} bytes stayed");
}

#[test]
fn a_model_that_is_dropped_gives_its_memory_back() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let before = gpu.counters().bytes;
    let captioner = load_demo(gpu.clone()).unwrap();
    let weights = gpu.counters().bytes - before;
    assert!(weights > 8 << 20, "{weights} bytes");
    let first = caption(&captioner);
    let used = gpu.counters().bytes;
    for _ in 0..3 {
        assert_eq!(caption(&captioner), first);
    }
    // A caption's cache goes with it.
    assert_eq!(gpu.counters().bytes, used);
    drop(captioner);
    block_on(gpu.check()).unwrap();
    let left = gpu.counters().bytes - before;
    assert!(left < used - before - weights / 2, "{left} of {used} bytes stayed");
}

/// What is recorded for a token, from one call to the next.
fn asked(gpu: &WebGpu, stream: &mut rscapret::caption::CaptionStream<'_, WebGpu>) -> u64 {
    let before = gpu.counters().dispatches;
    block_on(stream.next()).unwrap().expect("a longer caption");
    gpu.counters().dispatches - before
}

#[test]
fn a_caption_that_is_dropped_was_one_token_ahead_and_asks_for_no_more() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let captioner = load_demo(gpu.clone()).unwrap();
    let features = captioner.features(&album(40)[..1]).unwrap();
    let mut stream = captioner.stream(&features, &DecodeOptions::default()).unwrap();
    asked(&gpu, &mut stream);
    let steps: Vec<u64> = (0..3).map(|_| asked(&gpu, &mut stream)).collect();
    // A call asks for one step, that of the token after the one that it gives.
    assert!(steps.iter().all(|&step| step == steps[0] && step > 0), "{steps:?}");
    let before = gpu.counters();
    drop(stream);
    block_on(gpu.check()).unwrap();
    let after = gpu.counters();
    // The sum of `check` alone.
    assert_eq!(after.dispatches - before.dispatches, 1);
}
