//! What can be measured, known before anything is built. A test compares this with what the measuring program runs.

use crate::error::{Error, Result};

/// Models and search, in every place.
const MODELS: [&str; 18] = [
    "image-encode/demo",
    "image-encode/demo/batch",
    "prefill/demo",
    "decode/demo",
    "image-encode/ViT-L-14",
    "retrieval/100000x256",
    "prefill/110M/Q4_0",
    "decode/110M/Q4_0",
    "decode/110M/Q4_0/2048",
    "prefill/1.1B/Q4_0",
    "decode/1.1B/Q4_0",
    "decode/1.1B/Q4_0/2048",
    "prefill/1.1B/Q4_K_M",
    "decode/1.1B/Q4_K_M",
    "prefill/1.1B/Q8_0",
    "decode/1.1B/Q8_0",
    "prefill/7B/Q4_0",
    "decode/7B/Q4_0",
];
/// Where they run; natively on the processor there is no such part. `/cuda` is candle's, in a program that was built with CUDA.
const PLACES: [&str; 5] = ["", "/webgpu", "/cuda", "/chromium", "/chromium/webgpu"];
/// What is asked of GPUs alone.
const GPU: [&str; 27] = [
    "matvec/11008x4096/F32",
    "matvec/11008x4096/F16",
    "matvec/11008x4096/Q8_0",
    "matvec/11008x4096/Q4_0",
    "matvec/11008x4096/Q4_K",
    "matvec/11008x4096/Q5_0",
    "matvec/11008x4096/Q5_K",
    "matvec/11008x4096/Q6_K",
    "matvec/4096x4096/F16",
    "matvec/4096x4096/Q8_0",
    "matvec/4096x4096/Q4_0",
    "matvec/4096x4096/Q4_K",
    "matvec/11008x4096/F16/plain",
    "matvec/11008x4096/Q8_0/plain",
    "matvec/11008x4096/Q4_0/plain",
    "matvec_gated/11008x4096/Q4_0",
    "matvec_joined/4096x4096/Q4_0",
    "matmul/4096x4096/F16",
    "matmul/4096x4096/Q8_0",
    "matmul/4096x4096/Q4_0",
    "bandwidth",
    "upload/Q4_0",
    "dispatches/110M/Q4_0",
    "encode-token/110M/Q4_0",
    "step/110M/Q4_0",
    "step/7B/Q4_0",
    "forced/1.1B/Q4_0",
];
/// From a file, in every place but CUDA.
const LOAD: &str = "load/1.1B/Q4_0";
/// Training; the last ones of CUDA's GPUs, beside PyTorch.
const TRAINING: [&str; 19] = [
    "features/ViT-L-14",
    "training/lm/demo",
    "training/clip/demo",
    "training/bridge/demo",
    "training/linear/frozen/f32/step",
    "training/linear/frozen/f32/peak",
    "training/linear/frozen/Q8_0/step",
    "training/linear/frozen/Q8_0/peak",
    "training/linear/frozen/Q4_K/step",
    "training/linear/frozen/Q4_K/peak",
    "training/linear/candle/f32/step",
    "training/linear/candle/f32/peak",
    "training/llama-7b-step/ours",
    "training/llama-7b-step/ours/peak",
    "training/llama-7b-step/micro",
    "training/llama-7b-step/micro/peak",
    "training/llama-7b-step/pytorch",
    "training/llama-7b-step/pytorch/peak",
    "training/llama-7b-step/ratio",
];
/// The same Llama in other programs.
const COMPARED: [&str; 2] = ["110M", "1.1B"];
const RUNNERS: [&str; 5] =
    ["rscapret/cpu", "wllama/cpu", "onnxruntime-web/cpu", "rscapret/webgpu", "onnxruntime-web/webgpu"];
/// Sizes of the page's modules.
const SIZES: [&str; 4] = ["wasm/app", "wasm/app/gzip", "wasm/worker", "wasm/worker/gzip"];

/// Names of all rows that there can be.
pub fn names() -> Vec<String> {
    let places = |names: &[&str], places: &[&str]| -> Vec<String> {
        places.iter().flat_map(|place| names.iter().map(move |name| format!("{name}{place}"))).collect()
    };
    let compared = COMPARED.iter().flat_map(|model| {
        RUNNERS
            .iter()
            .flat_map(move |runner| ["prefill", "decode"].map(|what| format!("compare/{model}/{what}/{runner}")))
    });
    let mut all = places(&MODELS, &PLACES);
    all.extend(places(&GPU, &[PLACES[1], PLACES[4]]));
    all.extend(places(&[LOAD], &[PLACES[0], PLACES[1], PLACES[3], PLACES[4]]));
    all.extend(compared);
    all.extend(TRAINING.iter().chain(&SIZES).map(ToString::to_string));
    all
}

/// What was asked for.
#[derive(Debug)]
pub(super) struct Choice {
    /// As the measuring program takes it: `=` before a whole name, which chooses that row alone.
    pub(super) names: Vec<String>,
    /// Rows that may come of it.
    rows: Vec<String>,
}

impl Choice {
    /// # Errors
    /// [`Error::Usage`] for a name that chooses nothing.
    pub(super) fn new(asked: &[String]) -> Result<Self> {
        let all = names();
        let exact = |name: &String| if all.contains(name) { format!("={name}") } else { name.clone() };
        let choice = Choice { names: asked.iter().map(exact).collect(), rows: Vec::new() };
        if let Some(wrong) = choice.names.iter().find(|name| !all.iter().any(|row| chooses(name, row))) {
            return Err(Error::Usage(format!(
                "expected the name of a benchmark or a part of it but found `{wrong}`\n\
                 `cargo xtask bench --list` tells the names"
            )));
        }
        let rows = all.into_iter().filter(|row| choice.takes(row)).collect();
        Ok(Choice { rows, ..choice })
    }

    pub(super) fn takes(&self, row: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| chooses(name, row))
    }

    /// Whether a browser measures some of it.
    pub(super) fn in_browser(&self) -> bool {
        self.rows.iter().any(|row| row.contains("/chromium") || row.starts_with("compare/"))
    }

    /// Whether it is about the page's files.
    pub(super) fn of_page(&self) -> bool {
        self.rows.iter().any(|row| SIZES.contains(&row.as_str()))
    }

    /// Whether the measuring program has anything to do.
    pub(super) fn of_models(&self) -> bool {
        self.rows.iter().any(|row| !SIZES.contains(&row.as_str()))
    }
}

fn chooses(name: &str, row: &str) -> bool {
    name.strip_prefix('=').map_or_else(|| row.contains(name), |whole| row == whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(names: &[&str]) -> Choice {
        Choice::new(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_whole_name_is_one_row_and_a_part_of_it_all_that_have_it() {
        let one = choice(&["decode/demo"]);
        assert_eq!(
            (one.names.as_slice(), one.rows.as_slice()),
            (&["=decode/demo".to_string()][..], &["decode/demo".to_string()][..])
        );
        assert!(one.takes("decode/demo") && !one.takes("decode/demo/chromium"));
        assert_eq!(choice(&["decode/dem"]).rows.len(), 5);
        assert_eq!(choice(&[]).rows, names());
        let error = Choice::new(&["decode".to_string(), "decode/demmo".to_string()]).unwrap_err();
        assert!(error.code() == 2 && error.to_string().contains("found `decode/demmo`"), "{error}");
    }

    #[test]
    fn only_what_is_needed_is_asked_for() {
        let needs = |names: &[&str]| {
            let choice = choice(names);
            (choice.in_browser(), choice.of_page(), choice.of_models())
        };
        assert_eq!(needs(&["decode/demo"]), (false, false, true));
        assert_eq!(needs(&["training"]), (false, false, true));
        assert_eq!(needs(&["wasm"]), (false, true, false));
        assert_eq!(needs(&["decode/demo/chromium"]), (true, false, true));
        assert_eq!(needs(&["compare"]), (true, false, true));
        assert_eq!(needs(&[]), (true, true, true));
    }
}
