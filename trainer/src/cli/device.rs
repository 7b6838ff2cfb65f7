//! `--device`: what computes, and the one place where it is opened.

use std::{str::FromStr, sync::OnceLock};

use rscapret::{Candle, Context, Error, Result};

use crate::parallel::{Group, ordinal};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// All cores of the processor.
    Cpu,
    /// Any GPU, through Vulkan, Metal or DX12; for inference only.
    Webgpu,
    /// The NVIDIA GPU of that number, through CUDA.
    Cuda(usize),
    /// A GPU if there is one, else the processor.
    Auto,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected `cpu`, `webgpu`, `cuda`, `cuda:N` or `auto` but found `{text}`");
        match text {
            "cpu" => Ok(Device::Cpu),
            "webgpu" => Ok(Device::Webgpu),
            "cuda" => Ok(Device::Cuda(0)),
            "auto" => Ok(Device::Auto),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Device::Cuda).ok_or_else(wrong)
            }
        }
    }
}

/// What computes in the commands that train and score: those need candle.
fn of_candle(text: &str) -> Result<Device, String> {
    match text.parse() {
        Ok(Device::Webgpu) | Err(_) => Err(format!("expected `cpu`, `cuda`, `cuda:N` or `auto` but found `{text}`")),
        Ok(device) => Ok(device),
    }
}

/// `--device` of the commands that train and score.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceArgs {
    /// What computes: cpu; cuda or cuda:N, an NVIDIA GPU; auto, such a GPU if there is one, else the processor
    #[arg(long, value_name = "DEVICE", value_parser = of_candle, default_value = "cpu")]
    pub device: Device,
}

impl DeviceArgs {
    /// Opens it.
    ///
    /// # Errors
    /// As [`cuda`].
    pub fn open(self) -> Result<Candle> {
        self.open_nth(0)
    }

    /// Opens that of one process of a group: on NVIDIA GPUs each has its own, the first process the one that was named.
    ///
    /// # Errors
    /// As [`cuda`].
    pub fn open_in(self, group: &dyn Group) -> Result<Candle> {
        self.open_nth(ordinal(group))
    }

    fn open_nth(self, nth: usize) -> Result<Candle> {
        match self.device {
            Device::Cpu => Ok(Candle::cpu()),
            Device::Cuda(first) => cuda(first.saturating_add(nth)),
            // Only opening it tells: a program that was built with CUDA also starts where there is none.
            Device::Auto => cuda(nth).or_else(|error| {
                // The others would wait for one who computes on another kind of device.
                if nth > 0 && cuda(0).is_ok() {
                    return Err(error);
                }
                eprintln!("on the processor: {error}");
                Ok(Candle::cpu())
            }),
            Device::Webgpu => Err(Error::Unsupported("expected `cpu`, `cuda` or `auto` but found `webgpu`".into())),
        }
    }
}

/// The NVIDIA GPU of that number; f32 until it is told otherwise.
///
/// # Errors
/// With its name: [`Error::Unsupported`] in a program without CUDA, [`Error::Backend`] where there is no such GPU.
pub fn cuda(ordinal: usize) -> Result<Candle> {
    open_cuda(ordinal).at(format!("cuda:{ordinal}"))
}

/// What tests compute on: the device that `$RSCAPRET_TEST_DEVICE` names, else the processor. One for all tests of a process,
/// for tensors of two handles of a GPU do not mix.
///
/// # Errors
/// As [`DeviceArgs::open`]; a name of no device that trains.
#[doc(hidden)]
pub fn of_tests() -> Result<Candle> {
    static OPENED: OnceLock<Result<Candle, String>> = OnceLock::new();
    let open = || {
        let name = std::env::var("RSCAPRET_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_string());
        of_candle(&name).and_then(|device| DeviceArgs { device }.open().map_err(|error| error.to_string()))
    };
    OPENED.get_or_init(open).clone().map_err(|error| Error::Config(format!("$RSCAPRET_TEST_DEVICE: {error}")))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_ordinal: usize) -> Result<Candle> {
    Err(Error::Unsupported(
        "expected a program with CUDA but found one without\nbuild with --features cuda, which needs nvcc".into(),
    ))
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<Candle> {
    Candle::cuda(ordinal).map_err(|error| {
        let found = error.to_string();
        let found = found.lines().next().unwrap_or_default();
        Error::Backend(format!(
            "expected an NVIDIA GPU but found {found}\nnvidia-smi lists the GPUs that the driver sees; --device cpu needs none"
        ))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};
    use rayon::prelude::*;

    use super::*;
    use crate::vars::values;

    #[test]
    fn names_of_devices() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("webgpu", Device::Webgpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("auto", Device::Auto),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for wrong in ["", "CUDA", "cuda:", "cuda:x", "cuda:-1", "gpu"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains(&format!("but found `{wrong}`")));
        }
        assert!(of_candle("webgpu").unwrap_err().contains("expected `cpu`, `cuda`, `cuda:N` or `auto`"));
        assert_eq!(of_candle("cuda:1"), Ok(Device::Cuda(1)));
    }

    /// As far above the first one's as its rank, where there are so many.
    #[test]
    fn each_process_has_a_gpu_of_its_own() {
        for (first, nth, expected) in [(0, 0, "cuda:0: "), (0, 2, "cuda:2: "), (1, 2, "cuda:3: ")] {
            if let Err(error) = (DeviceArgs { device: Device::Cuda(first) }).open_nth(nth) {
                assert!(error.to_string().starts_with(expected), "{error}");
            } else {
                assert!(cuda(first + nth).is_ok());
            }
        }
        assert!(DeviceArgs { device: Device::Cpu }.open_nth(3).unwrap().device().is_cpu());
    }

    /// With `$RSCAPRET_TEST_DEVICE` on a GPU, whose work must have one order for all threads.
    #[test]
    fn what_one_thread_computes_another_reads() {
        let device = of_tests().unwrap().device().clone();
        // All elements are 1/256, and so are those of its powers.
        let x = (Tensor::ones((256, 256), DType::F32, &device).unwrap() * (1.0 / 256.0)).unwrap();
        for round in 0..20u32 {
            let power = |_: &u32| (0..40).try_fold(x.clone(), |power, _| power.matmul(&x)).unwrap();
            let powers: Vec<Tensor> = [round, round + 1, round + 2].par_iter().map(power).collect();
            for power in powers {
                let read = values(&power).unwrap();
                assert!(read.iter().all(|v| (v - 1.0 / 256.0).abs() < 1e-6), "{round}: {:?}", &read[..4]);
            }
        }
    }

    /// On a machine without an NVIDIA GPU, built with CUDA or not, and with one.
    #[test]
    fn auto_computes_wherever_it_is() {
        let auto = DeviceArgs { device: Device::Auto }.open().unwrap();
        assert_eq!(auto.device().is_cpu(), cuda(0).is_err());
        if let Err(error) = cuda(0) {
            let remedy = if cfg!(feature = "cuda") { "--device cpu" } else { "build with --features cuda" };
            let error = error.to_string();
            assert!(error.starts_with("cuda:0: expected ") && error.contains(remedy), "{error}");
        }
    }
}
