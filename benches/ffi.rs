//! What the C interface costs over the library, and how sessions of one model scale beside as many processes:
//! `cargo bench --bench ffi -- b0 480x640`.

use std::ffi::CString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;
use std::time::Instant;

use amdanet::checkpoint;
use amdanet::data::ClassSet;
use amdanet::ffi::*;
use amdanet::infer::{Engine, Pairs, Pixels, Wanted};
use amdanet::model::{Amdanet, Arch, Encoder, ModelConfig};

const ROUNDS: usize = 15;

/// Set to a file of weights in the processes that this one starts: they print the rate of one session.
const WEIGHTS: &str = "AMDANET_BENCH_WEIGHTS";
const CLASSES: usize = 9;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // Cargo adds arguments of its own, which begin with dashes.
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let name = arguments.next().unwrap_or_else(|| "b0".into());
    let size = arguments.next().unwrap_or_else(|| "480x640".into());
    let encoder =
        Encoder::ALL.into_iter().find(|e| e.name() == name).ok_or("the encoders are nano, b0, …, b5")?;
    let (height, width) = size.split_once('x').ok_or("a size is written HEIGHTxWIDTH, as 480x640")?;
    let (height, width): (usize, usize) = (height.parse()?, width.parse()?);

    if let Some(weights) = std::env::var_os(WEIGHTS) {
        let model = load(Path::new(&weights))?;
        println!("{}", rate(model, width, height)?);
        // SAFETY: it is not used any more.
        unsafe { amdanet_model_free(model) };
        return Ok(());
    }
    let mut network = Amdanet::new(ModelConfig::new(encoder, Arch::Release, CLASSES))?;
    network.params.initialise(1);
    let folder = tempfile::tempdir()?;
    let weights = folder.path().join("network.safetensors");
    checkpoint::save(&weights, &network, &ClassSet::unnamed(CLASSES)?)?;
    let model = load(&weights)?;

    println!("{name}, {height}x{width}, {} threads", rayon::current_num_threads());
    overhead(&network, model, width, height)?;
    for count in 1..=4 {
        let sessions = sessions(model, count, width, height)?;
        let processes = processes(&weights, count, &name, &size)?;
        println!(
            "{count} of one thread: sessions {sessions:.2} frames/s, processes {processes:.2}, ratio {:.3}",
            sessions / processes
        );
    }
    // SAFETY: it is not used any more.
    unsafe { amdanet_model_free(model) };
    Ok(())
}

fn load(weights: &Path) -> Result<*mut amdanet_model, Failure> {
    let path = CString::new(weights.to_str().ok_or("the temporary folder's name is not UTF-8")?)?;
    let mut model = ptr::null_mut();
    // SAFETY: the path ends with a 0, and the place may be written.
    check(unsafe { amdanet_model_load(path.as_ptr(), ptr::null(), &mut model) })?;
    Ok(model)
}

fn check(status: amdanet_status) -> Result<(), Failure> {
    if status == amdanet_status::Ok {
        return Ok(());
    }
    let mut text = vec![0u8; 1000];
    // SAFETY: the buffer has that length.
    let length = unsafe { amdanet_last_error(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length.min(999));
    Err(format!("{status:?}: {}", String::from_utf8_lossy(&text)).into())
}

/// A session with the memory of one frame.
struct Caller {
    session: *mut amdanet_session,
    frame: amdanet_frame,
    visible: Vec<u8>,
    infrared: Vec<u8>,
    fused: Vec<u8>,
    labels: Vec<u8>,
}

impl Caller {
    fn new(model: *const amdanet_model, threads: u32, width: usize, height: usize) -> Result<Self, Failure> {
        let visible: Vec<u8> = (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect();
        let (mut session, mut frame) = (ptr::null_mut(), std::mem::MaybeUninit::uninit());
        let mut params = std::mem::MaybeUninit::uninit();
        // SAFETY: the init functions fill the structures, and all pointers are valid.
        let frame = unsafe {
            check(amdanet_session_params_init(params.as_mut_ptr(), size_of::<amdanet_session_params>()))?;
            let mut params = params.assume_init();
            params.threads = threads;
            check(amdanet_session_create(model, &params, &mut session))?;
            check(amdanet_frame_init(frame.as_mut_ptr(), size_of::<amdanet_frame>()))?;
            frame.assume_init()
        };
        let (infrared, fused, labels) = (visible.clone(), visible.clone(), vec![0; width * height]);
        let mut caller = Self { session, frame, visible, infrared, fused, labels };
        let Self { frame, visible, infrared, fused, labels, .. } = &mut caller;
        (frame.width, frame.height) = (width as u32, height as u32);
        (frame.visible.data, frame.visible.length) = (visible.as_ptr().cast(), visible.len());
        (frame.infrared.data, frame.infrared.length) = (infrared.as_ptr().cast(), infrared.len());
        (frame.fused.data, frame.fused.length) = (fused.as_mut_ptr().cast(), fused.len());
        (frame.labels.data, frame.labels.length) = (labels.as_mut_ptr().cast(), labels.len());
        Ok(caller)
    }

    fn run(&mut self) -> Result<(), Failure> {
        // SAFETY: the frame points at this caller's memory.
        check(unsafe { amdanet_session_run(self.session, &self.frame) })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { amdanet_session_free(self.session) };
    }
}

/// The same frame by the interface and by the library, one after the other; the library copies its results too.
fn overhead(
    network: &Amdanet,
    model: *const amdanet_model,
    width: usize,
    height: usize,
) -> Result<(), Failure> {
    let mut caller = Caller::new(model, 0, width, height)?;
    let mut session = Engine::new(network)?.session();
    let (mut fused, mut labels) = (caller.fused.clone(), caller.labels.clone());
    let (visible, infrared) = (caller.visible.clone(), caller.infrared.clone());
    let pairs = Pairs {
        batch: 1,
        height,
        width,
        visible: Pixels::Bytes(&visible),
        infrared: Pixels::Bytes(&infrared),
    };
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..=ROUNDS {
        let start = Instant::now();
        let output = session.run(&pairs, Wanted::default())?;
        fused.copy_from_slice(output.fused);
        labels.copy_from_slice(output.labels);
        times[0].push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        caller.run()?;
        times[1].push(start.elapsed().as_secs_f64() * 1e3);
        if caller.fused != fused || caller.labels != labels {
            return Err("the interface's results differ from the library's".into());
        }
    }
    // The first of each takes memory.
    let [library, interface] = times.map(|times| Spread::new(&times[1..]));
    println!("library    {library}\ninterface  {interface}");
    println!("the interface takes {:+.2} % of the median", 100.0 * (interface.median / library.median - 1.0));
    Ok(())
}

struct Spread {
    least: f64,
    median: f64,
}

impl Spread {
    fn new(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { least: sorted[0], median: sorted[sorted.len() / 2] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:.3} ms, least {:.3} ms", self.median, self.least)
    }
}

/// Frames in a second of a session of one thread.
fn rate(model: *const amdanet_model, width: usize, height: usize) -> Result<f64, Failure> {
    let mut caller = Caller::new(model, 1, width, height)?;
    caller.run()?;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        caller.run()?;
    }
    Ok(ROUNDS as f64 / start.elapsed().as_secs_f64())
}

/// Frames in a second of all sessions of one model, each with a thread that calls it.
fn sessions(model: *const amdanet_model, count: usize, width: usize, height: usize) -> Result<f64, Failure> {
    let model = model as usize;
    let start = || {
        std::thread::spawn(move || {
            rate(model as *const amdanet_model, width, height).map_err(|e| e.to_string())
        })
    };
    let threads: Vec<_> = (0..count).map(|_| start()).collect();
    threads.into_iter().map(|thread| Ok(thread.join().map_err(|_| "a thread panicked")??)).sum()
}

/// The same of processes with a model and a session each.
fn processes(weights: &Path, count: usize, encoder: &str, size: &str) -> Result<f64, Failure> {
    let start = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([encoder, size]).env(WEIGHTS, weights).stdout(Stdio::piped()).spawn()
    };
    let processes = (0..count).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    let rate = |process: std::process::Child| -> Result<f64, Failure> {
        Ok(String::from_utf8(process.wait_with_output()?.stdout)?.trim().parse()?)
    };
    processes.into_iter().map(rate).sum()
}
