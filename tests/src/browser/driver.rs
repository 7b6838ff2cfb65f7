//! The processes: chromedriver, and Chromium under it.

use std::{
    io::{BufRead, BufReader},
    ops::Deref,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use tempfile::TempDir;

use super::{Requests, Session};

/// One browser at a time: each computes as fast as it can, and so would measure the others.
static ONE: Mutex<()> = Mutex::new(());

const SWIFTSHADER: [&str; 2] = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
/// Without a display, on Linux.
const OWN_GPU: [&str; 5] = [
    "--enable-unsafe-webgpu",
    "--ignore-gpu-blocklist",
    "--use-angle=vulkan",
    "--enable-features=Vulkan",
    "--disable-vulkan-surface",
];

/// Whether Chromium gets this machine's own GPU, through Vulkan, and not SwiftShader: `$RSCAPRET_OWN_GPU` says so.
pub fn own_gpu() -> bool {
    std::env::var_os("RSCAPRET_OWN_GPU").is_some()
}

/// A fresh Chromium without a past. Dropping it ends it.
pub struct Browser {
    session: Session,
    driver: Child,
    /// Profile and log; deleted at the end.
    folder: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts chromedriver on a free port and Chromium under it.
    ///
    /// # Panics
    /// Without either, with the remedy.
    pub fn start() -> Browser {
        Browser::start_with(&[])
    }

    /// Starts it with a GPU that is a program on the processor: SwiftShader, without 16-bit floats. With [`own_gpu`], with
    /// this machine's own.
    ///
    /// # Panics
    /// As [`Browser::start`].
    pub fn start_with_gpu() -> Browser {
        Browser::start_with(if own_gpu() { &OWN_GPU } else { &SWIFTSHADER })
    }

    fn start_with(more: &[&str]) -> Browser {
        // A test that failed has poisoned nothing but itself.
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = xtask::setup::browser()
            .unwrap_or_else(|error| panic!("{error}\n`cargo xtask setup --tests` installs what the tests need"));
        let folder = TempDir::new().expect("expected a temporary folder");
        let mut driver = Command::new(&programs.driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", programs.driver.display()));
        let address = format!("http://127.0.0.1:{}", port(&mut driver));
        let folder_of = |name: &str| folder.path().join(name).display().to_string();
        let mut arguments = vec![
            "--headless".to_string(),
            "--no-sandbox".into(),
            "--window-size=1280,900".into(),
            // Nothing of the browser's own goes to the network.
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--disable-extensions".into(),
            "--disable-features=AutofillServerCommunication,OptimizationHints,MediaRouter,Translate".into(),
            format!("--user-data-dir={}", folder_of("profile")),
            format!("--log-net-log={}", folder_of(LOG)),
        ];
        arguments.extend(more.iter().map(ToString::to_string));
        let session = Session::new(
            &address,
            &json!({
                "browserName": "chrome",
                "goog:chromeOptions": {"binary": programs.chromium, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }),
        );
        Browser { session, driver, folder, _one: one }
    }

    /// Kills the process that plays the GPU, as a driver's fault does; the browser starts another.
    ///
    /// # Panics
    /// Where there is none.
    pub fn kill_gpu_process(&self) {
        let mut family = vec![self.driver.id().to_string()];
        let processes: Vec<(String, String)> = std::fs::read_dir("/proc")
            .expect("expected /proc")
            .flatten()
            .filter_map(|entry| {
                let id = entry.file_name().into_string().ok().filter(|id| id.bytes().all(|b| b.is_ascii_digit()))?;
                let status = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                // After the name, which may hold anything: state, parent.
                let parent = status.rsplit_once(") ")?.1.split(' ').nth(1)?.to_string();
                Some((id, parent))
            })
            .collect();
        // Children of children, until there are no more.
        let mut seen = 0;
        while seen < family.len() {
            let parent = family[seen].clone();
            family.extend(processes.iter().filter(|(_, p)| *p == parent).map(|(id, _)| id.clone()));
            seen += 1;
        }
        let plays = |id: &&String| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("--type=gpu-process")
        };
        let gpu = family.iter().find(plays).expect("expected a process that plays the GPU");
        let killed = Command::new("kill").args(["-9", gpu]).status().expect("expected to run kill");
        assert!(killed.success());
    }

    /// Ends the browser and reads what it had asked the network for, all of it: page, worker, and itself.
    pub fn requests(self) -> Requests {
        // The log is whole only once the browser has gone.
        self.session.close();
        let path: PathBuf = self.folder.path().join(LOG);
        let text = std::fs::read(&path).expect("expected the browser's network log");
        Requests::parse(&text)
    }
}

/// The browser's log of its network stack.
const LOG: &str = "net.json";

impl Deref for Browser {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session.close();
        // It may have ended by itself.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The port that chromedriver took, by what it prints.
fn port(driver: &mut Child) -> u16 {
    let out = driver.stdout.take().expect("expected the driver's output");
    let mut lines = BufReader::new(out).lines().map_while(Result::ok);
    let port = lines
        .find_map(|line| line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok())
        .expect("expected chromedriver to name its port");
    // Read on, or the driver blocks when the pipe is full.
    std::thread::spawn(move || lines.for_each(drop));
    port
}
