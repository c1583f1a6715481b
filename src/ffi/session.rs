//! Sessions: where frames are computed, at once or in a queue.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::device::amdanet_device_kind;
use super::frame::{Frame, Staging, amdanet_frame};
use super::handle::{self, Handle};
use super::model::{Computer, Model, amdanet_model};
use super::pool::Pool;
use super::sized::{self, Struct};
use super::status::{
    Failure, Progress, Result, amdanet_log_level, amdanet_progress_callback, amdanet_status, guard,
    is_in_callback, log,
};
use crate::cuda::driver::Driver;
use crate::infer::{self, Engine, MOST_SHAPES, Pairs, Pixels, Step, Wanted};
use crate::model::{LARGEST_SIDE, SMALLEST_SIDE};
use crate::tensor::{memory, release_waiting};

/// Memory, plans and threads that compute with a network. A session computes one frame at a time; for several at once make
/// several sessions of one model.
pub struct amdanet_session(Arc<Session>);

impl Handle for amdanet_session {
    const NAME: &'static str = "session";
    type Inner = Session;

    fn wrap(inner: Arc<Session>) -> Self {
        Self(inner)
    }

    fn inner(&self) -> &Arc<Session> {
        &self.0
    }
}

/// The type of the arithmetic, whose sums are 32-bit floats in any case.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_precision {
    /// 32-bit float.
    F32 = 0,
    /// 32-bit float whose products round their factors to 10 bits of mantissa. CUDA only.
    Tf32 = 1,
    /// 16-bit float. CUDA only.
    F16 = 2,
    /// bfloat16. CUDA only.
    Bf16 = 3,
}

/// How a session computes. All zeros but struct_size are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_session_params {
    /// sizeof(amdanet_session_params).
    pub struct_size: usize,
    /// Is told of each step of a frame; NULL for none. It costs a call for each of some hundred steps.
    pub progress: amdanet_progress_callback,
    /// Handed to `progress`.
    pub progress_user: *mut c_void,
    /// The most bytes that a frame may take besides weights and the caller's own, on the device that computes it; 0 for what
    /// there is.
    pub memory_limit: u64,
    /// An amdanet_device_kind.
    pub device: u32,
    /// Which device of that kind; 0 for AMDANET_DEVICE_KIND_AUTO and AMDANET_DEVICE_KIND_CPU.
    pub ordinal: u32,
    /// An amdanet_precision; AMDANET_PRECISION_F32 on the CPU. AMDANET_PRECISION_F16 is the fastest on a GPU.
    pub precision: u32,
    /// Threads of its own, 1 to 1024. 0: one for each processor, which all such sessions share; sessions that compute at the
    /// same time are better off with their own. A session's results do not depend on it.
    pub threads: u32,
    /// The width of all frames, if it is known, and `height`. The session is then made ready: memory is taken, and the first
    /// frame is as quick as any. Both 0: any size; what a size needs is made when it is first met, and kept for the last few.
    pub width: u32,
    /// The height of all frames, or 0.
    pub height: u32,
    /// The most frames that are submitted and not waited for, 1 to 64; 0 for 2.
    pub queue: u32,
    /// 1: note the time of each step of each frame, for amdanet_session_get_step. 0: do not.
    pub timing: u32,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_session_params {
    const NAME: &'static str = "amdanet_session_params";
}

/// Fills `*params` with the defaults: `amdanet_session_params_init(&params, sizeof params)`. `struct_size` is that size, so
/// that no more than the caller's structure is written. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `params` is NULL or `struct_size` is no size of it.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_params_init(
    params: *mut amdanet_session_params,
    struct_size: usize,
) -> amdanet_status {
    // SAFETY: the caller says that so many bytes may be written.
    guard(|| unsafe { sized::init(params, struct_size) })
}

/// What a session computes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Cpu,
    Cuda { ordinal: u32, precision: amdanet_precision },
}

/// The numbers of [`amdanet_session_params`], checked.
struct Params {
    kind: amdanet_device_kind,
    ordinal: u32,
    precision: amdanet_precision,
    progress: Progress,
    limit: u64,
    /// Width and height of all frames.
    fixed: Option<(usize, usize)>,
    queue: usize,
    timing: bool,
}

impl Params {
    fn new(params: &amdanet_session_params) -> Result<Self> {
        let refuse = |name: &str, what: String| Err(Failure::argument(format!("params.{name}"), what));
        use amdanet_device_kind::{Auto, Cpu, Cuda};
        let kind = [Auto, Cpu, Cuda].into_iter().find(|&kind| kind as u32 == params.device);
        let kind =
            kind.ok_or_else(|| Failure::no_constant("params.device", params.device, "amdanet_device_kind"))?;
        if kind != Cuda && params.ordinal != 0 {
            return refuse("ordinal", format!("{}: only CUDA devices are numbered", params.ordinal));
        }
        use amdanet_precision::{Bf16, F16, F32, Tf32};
        let precision = [F32, Tf32, F16, Bf16].into_iter().find(|&p| p as u32 == params.precision);
        let precision = precision
            .ok_or_else(|| Failure::no_constant("params.precision", params.precision, "amdanet_precision"))?;
        if kind == Cpu && precision != F32 {
            return Err(Self::no_precision());
        }
        if params.threads > 1024 {
            return refuse("threads", format!("{}: must be 0 to 1024", params.threads));
        }
        let (width, height) = (params.width as usize, params.height as usize);
        let sides = SMALLEST_SIDE..=LARGEST_SIDE;
        let fixed = match (width, height) {
            (0, 0) => None,
            (w, h) if sides.contains(&w) && sides.contains(&h) => Some((w, h)),
            (w, h) => {
                let range = format!("{SMALLEST_SIDE} to {LARGEST_SIDE}");
                return refuse("width and params.height", format!("{w}x{h}: both must be {range}, or 0"));
            }
        };
        if params.queue > 64 {
            return refuse("queue", format!("{}: must be 0 to 64", params.queue));
        }
        if params.timing > 1 {
            return refuse("timing", format!("{}: must be 0 or 1", params.timing));
        }
        Ok(Self {
            kind,
            ordinal: params.ordinal,
            precision,
            progress: Progress { callback: params.progress, user: params.progress_user },
            limit: params.memory_limit,
            fixed,
            queue: if params.queue == 0 { 2 } else { params.queue as usize },
            timing: params.timing == 1,
        })
    }

    fn no_precision() -> Failure {
        let what = "params.precision: the CPU computes in AMDANET_PRECISION_F32";
        Failure::new(amdanet_status::Unsupported, what)
    }

    /// The network where it is to compute.
    fn place(&self, model: &Model) -> Result<(Target, Computer)> {
        let &Self { kind, ordinal, precision, .. } = self;
        let cuda = Target::Cuda { ordinal, precision };
        let target = match kind {
            amdanet_device_kind::Cpu => Target::Cpu,
            amdanet_device_kind::Cuda => cuda,
            amdanet_device_kind::Auto => match model.computer(cuda) {
                Ok(computer) => return Ok((cuda, computer)),
                Err(e) => {
                    log(amdanet_log_level::Info, || format!("the CPU computes: {}", e.message));
                    if precision != amdanet_precision::F32 {
                        let Failure { status, message } = Self::no_precision();
                        return Err(Failure::new(
                            status,
                            format!("{message}; no CUDA device does: {}", e.message),
                        ));
                    }
                    Target::Cpu
                }
            },
        };
        Ok((target, model.computer(target)?))
    }
}

/// Makes a session of a network.
///
/// `params`: NULL for the defaults. `*session`: the session, which the caller owns and frees with amdanet_session_free; NULL
/// after an error. It needs `model` no longer than the call. Any thread may call it, several at once for one model.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT; AMDANET_STATUS_UNSUPPORTED for a device or precision that there is not, and when
/// `params` has fields of a newer version that are not 0; AMDANET_STATUS_OUT_OF_MEMORY when memory or threads for the size
/// given cannot be had; AMDANET_STATUS_DEVICE.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_create(
    model: *const amdanet_model,
    params: *const amdanet_session_params,
    session: *mut *mut amdanet_session,
) -> amdanet_status {
    guard(|| {
        // SAFETY: the caller says what the pointers are.
        let raw = unsafe {
            handle::place(session, "session")?;
            sized::read_or_default(params, "params")?
        };
        let model = handle::get(model)?;
        let params = Params::new(&raw)?;
        let classes = model.classes();
        let (target, Computer { engine, device }) = params.place(&model)?;
        let mut core = Core::new(engine, device.is_some(), Pool::new(raw.threads)?);
        if let Some((width, height)) = params.fixed {
            core.warm(&params, width, height)?;
        }
        log(amdanet_log_level::Info, || {
            let on = device.as_ref().map_or("the CPU".into(), |device| device.name());
            format!("made a session on {on} with {} threads", core.pool.len())
        });
        // SAFETY: the place was checked above.
        unsafe { handle::give(Session::new(params, classes, target, device, core), session) };
        Ok(())
    })
}

/// Frees a session, after the frame that it computes; frames in its queue are not begun any more, and whoever waits for them
/// gets AMDANET_STATUS_CANCELLED. When it returns, the caller's memory is not used any more; only if a callback of the library
/// calls it, it returns before that. NULL, and what was freed before, are nothing. Any thread may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdanet_session_free(session: *mut amdanet_session) {
    let _ = guard(|| {
        // In this order: whoever finds the pointer freed may rely on nothing more being begun.
        if let Ok(session) = handle::get(session) {
            session.begin_nothing();
        }
        if let Some(session) = handle::take(session) {
            session.close();
        }
        release_waiting();
        Ok(())
    });
}

/// Fuses and labels a pair, and returns when the results are written. The pictures and buffers of `frame` are used only during
/// the call.
///
/// Threads: any, one at a time; see AMDANET_STATUS_BUSY.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT, which also is a picture of floats that are not from 0 to 1, and another size than
/// that of the session; AMDANET_STATUS_UNSUPPORTED for CUDA memory and streams where the session is on the CPU, and for fields
/// of a newer version that are not 0; AMDANET_STATUS_DEVICE; AMDANET_STATUS_BUSY while the session computes another frame, has frames in its queue, or when it is called from a
/// callback of the session; AMDANET_STATUS_OUT_OF_MEMORY; AMDANET_STATUS_CANCELLED by the progress callback. After an error the
/// buffers hold what they held, and the session can go on.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_run(
    session: *mut amdanet_session,
    frame: *const amdanet_frame,
) -> amdanet_status {
    guard(|| {
        let session = handle::get(session)?;
        // SAFETY: the caller says that a structure is there.
        let frame = unsafe { sized::read(frame, "frame")? };
        let frame = session.check(&frame)?;
        let _turn = session.take_turn()?;
        session.compute(&frame)
    })
}

/// Puts a pair into the session's queue, and returns at once. A thread of the session computes the frames of the queue one
/// after the other, so that the caller can prepare the next one meanwhile.
///
/// `*frame` is copied; its pictures and buffers must stay, the pictures unchanged, until amdanet_session_wait has returned the
/// frame's end or the session is freed. `*ticket`: the number to wait for, which is never 0.
///
/// Threads: any, at any time, also while others wait. Errors: as those of amdanet_session_run that come before computing;
/// AMDANET_STATUS_BUSY also when amdanet_session_params.queue frames are submitted and not waited for. What goes wrong later is
/// returned by amdanet_session_wait.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_submit(
    session: *mut amdanet_session,
    frame: *const amdanet_frame,
    ticket: *mut u64,
) -> amdanet_status {
    guard(|| {
        let session = handle::get(session)?;
        if ticket.is_null() {
            return Err(Failure::argument("ticket", "is NULL"));
        }
        // SAFETY: the caller says that a structure is there.
        let frame = unsafe { sized::read(frame, "frame")? };
        let frame = session.check(&frame)?;
        let number = Session::submit(&session, frame)?;
        // SAFETY: the caller says that it may be written.
        unsafe { ticket.write(number) };
        Ok(())
    })
}

/// For amdanet_session_wait: as long as it takes.
pub const AMDANET_WAIT_FOREVER: u32 = u32::MAX;

/// Waits until a frame that was submitted is done, and returns how it ended, as amdanet_session_run would have. Its number is
/// used up then.
///
/// `milliseconds`: the longest time to wait; 0 only asks. Threads: any, several at once; each number is returned to one.
///
/// Errors: those of computing; AMDANET_STATUS_TIMEOUT when it is not done in time: wait again later;
/// AMDANET_STATUS_INVALID_ARGUMENT when there is no such number, or it was returned already; AMDANET_STATUS_BUSY from a
/// callback, where waiting would never end; AMDANET_STATUS_CANCELLED when the session was freed meanwhile.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_wait(
    session: *mut amdanet_session,
    ticket: u64,
    milliseconds: u32,
) -> amdanet_status {
    guard(|| {
        let session = handle::get(session)?;
        let forever = milliseconds == AMDANET_WAIT_FOREVER;
        let limit = (!forever).then(|| Instant::now() + Duration::from_millis(milliseconds.into()));
        session.wait(ticket, limit)
    })
}

/// What a session is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_session_info {
    /// sizeof(amdanet_session_info), set before the call.
    pub struct_size: usize,
    /// Bytes that it holds for computing, besides the weights, which all sessions of a model share.
    pub memory: u64,
    /// The amdanet_device_kind that it computes on.
    pub device: u32,
    /// Which device of that kind.
    pub ordinal: u32,
    /// Its amdanet_precision.
    pub precision: u32,
    /// Its threads.
    pub threads: u32,
    /// Steps whose times are known, for amdanet_session_get_step: those of the last frame if amdanet_session_params.timing is
    /// 1, else 0.
    pub steps: u32,
    /// Frames that are submitted and not waited for.
    pub submitted: u32,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_session_info {
    const NAME: &'static str = "amdanet_session_info";
}

/// Describes a session in `*info`, whose struct_size is set. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `session` is none, or `info` is NULL or has no valid size;
/// AMDANET_STATUS_BUSY while it computes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_get_info(
    session: *mut amdanet_session,
    info: *mut amdanet_session_info,
) -> amdanet_status {
    guard(|| {
        let session = handle::get(session)?;
        let submitted = session.queue().submitted() as u32;
        let core = session.idle()?;
        let (device, ordinal, precision) = match session.target {
            Target::Cpu => (amdanet_device_kind::Cpu, 0, amdanet_precision::F32),
            Target::Cuda { ordinal, precision } => (amdanet_device_kind::Cuda, ordinal, precision),
        };
        let value = amdanet_session_info {
            memory: (core.held + core.staging.iter().map(Staging::len).sum::<usize>()) as u64,
            device: device as u32,
            ordinal,
            precision: precision as u32,
            threads: core.pool.len() as u32,
            steps: core.steps.len() as u32,
            submitted,
            ..sized::zeroed()
        };
        // SAFETY: the caller says that the structure may be written.
        unsafe { sized::write(info, "info", &value) }
    })
}

/// A step of a frame.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct amdanet_step {
    /// sizeof(amdanet_step), set before the call.
    pub struct_size: usize,
    /// What it computed, such as "level 3 block attention". UTF-8 that ends with a 0 and lives until the session computes
    /// another frame or is freed.
    pub name: *const c_char,
    /// How long it took.
    pub milliseconds: f64,
    /// Bytes of what it read and wrote, each counted once.
    pub bytes: u64,
    /// Operations of its products, 2 for each multiply-add.
    pub operations: u64,
}

// SAFETY: it begins with its size, and any bytes are a value.
unsafe impl Struct for amdanet_step {
    const NAME: &'static str = "amdanet_step";
}

/// Describes step `index`, below amdanet_session_info.steps, of the last frame that was finished in `*step`, whose struct_size
/// is set. Any thread may call it.
///
/// Errors: AMDANET_STATUS_INVALID_ARGUMENT when `session` is none, there is no such step, or `step` is NULL or has no valid
/// size; AMDANET_STATUS_BUSY while it computes.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_session_get_step(
    session: *mut amdanet_session,
    index: u32,
    step: *mut amdanet_step,
) -> amdanet_status {
    guard(|| {
        let session = handle::get(session)?;
        let core = session.idle()?;
        let noted = core.steps.get(index as usize).ok_or_else(|| {
            let what = match core.steps.len() {
                0 => "no times are known: set amdanet_session_params.timing, and run a frame".into(),
                n => format!("there are {n} steps, from 0"),
            };
            Failure::argument("index", format!("{index}: {what}"))
        })?;
        let value = amdanet_step {
            name: noted.name.as_ptr(),
            milliseconds: noted.seconds * 1e3,
            bytes: noted.bytes as u64,
            operations: noted.operations as u64,
            ..sized::zeroed()
        };
        // SAFETY: the caller says that the structure may be written.
        unsafe { sized::write(step, "step", &value) }
    })
}

/// A step that was timed.
struct Noted {
    name: CString,
    seconds: f64,
    bytes: usize,
    operations: usize,
}

impl Noted {
    fn new(step: &Step, seconds: f64) -> Self {
        let name = CString::new(step.name.as_str()).unwrap_or_default();
        Self { name, seconds, bytes: step.bytes, operations: step.operations }
    }
}

/// What computes.
struct Core {
    engine: Engine,
    session: infer::Session,
    on_device: bool,
    /// The frames that `session` has plans for.
    shapes: HashSet<(usize, usize, bool, Wanted)>,
    /// Bytes of memory: those of the largest of them on the CPU, of all on a device.
    held: usize,
    staging: [Staging; 2],
    pool: Pool,
    steps: Vec<Noted>,
}

impl Core {
    fn new(engine: Engine, on_device: bool, pool: Pool) -> Self {
        Self {
            session: engine.session(),
            engine,
            on_device,
            shapes: HashSet::new(),
            held: 0,
            staging: Default::default(),
            pool,
            steps: Vec::new(),
        }
    }

    /// Forgets all plans, and gives their memory back.
    fn reset(&mut self) {
        self.session = self.engine.session();
        self.shapes.clear();
        self.held = 0;
    }

    /// Plans for a shape of pictures that are bytes or floats, and sees that there is memory for it.
    fn prepare(
        &mut self,
        params: &Params,
        (width, height): (usize, usize),
        bytes: bool,
        wanted: Wanted,
    ) -> Result<()> {
        if self.shapes.contains(&(width, height, bytes, wanted)) {
            return Ok(());
        }
        if self.shapes.len() == MOST_SHAPES {
            self.reset();
        }
        let none = if bytes { Pixels::Bytes(&[]) } else { Pixels::Floats(&[]) };
        let pairs = Pairs { batch: 1, height, width, visible: none, infrared: none };
        let plan = self.session.plan(&pairs, wanted)?;
        let scratch = plan.scratch.saturating_mul(self.pool.len() + 1);
        let bytes_taken = plan.arena.saturating_add(scratch);
        let what = format!("a frame of {width}x{height} pixels");
        log(amdanet_log_level::Debug, || {
            format!("{what} is {} steps in {:.1} MB", plan.steps.len(), bytes_taken as f64 / 1e6)
        });
        if params.limit != 0 && bytes_taken as u64 > params.limit {
            let limit = params.limit;
            let what = format!("{what} takes {bytes_taken} bytes, above params.memory_limit = {limit}");
            // A device's memory was taken with the plan.
            self.reset();
            return Err(Failure::new(amdanet_status::OutOfMemory, what));
        }
        if self.on_device {
            // Each plan has memory of its own there.
            self.held += bytes_taken;
        } else if bytes_taken > self.held {
            memory::check(bytes_taken - self.held, &what)?;
            self.held = bytes_taken;
        }
        self.shapes.insert((width, height, bytes, wanted));
        Ok(())
    }

    /// Computes black pictures, after which all memory is there.
    fn warm(&mut self, params: &Params, width: usize, height: usize) -> Result<()> {
        self.prepare(params, (width, height), true, Wanted::default())?;
        let black = vec![0; 3 * width * height];
        let (visible, infrared) = (Pixels::Bytes(&black), Pixels::Bytes(&black));
        let pairs = Pairs { batch: 1, height, width, visible, infrared };
        let Self { session, pool, .. } = self;
        pool.install(|| session.run(&pairs, Wanted::default()).map(|_| ()))?;
        Ok(())
    }

    fn compute(&mut self, params: &Params, frame: &Frame) -> Result<()> {
        let wanted = frame.wanted();
        self.prepare(params, (frame.width, frame.height), frame.is_bytes(), wanted)?;
        let Self { session, staging, pool, steps, .. } = self;
        pool.install(|| {
            // SAFETY: the caller leaves pictures and buffers to the library until the frame is done.
            let request = unsafe { frame.request(staging)? };
            let (mut noted, mut stopped, mut done) = (Vec::new(), Ok(()), 0);
            let (progress, timing) = (params.progress, params.timing);
            let mut watch = |step: &Step, seconds: f64, total: usize| {
                done += 1;
                if timing {
                    noted.push(Noted::new(step, seconds));
                }
                stopped = progress.say(done, total);
                if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let is_watched = timing || progress.is_wanted();
            // SAFETY: as above.
            let output =
                unsafe { session.run_frame(&request, wanted, is_watched.then_some(&mut watch as _))? };
            stopped?;
            if is_watched {
                *steps = noted;
            }
            if let Some(output) = output {
                // SAFETY: as above; the pictures are not read any more.
                unsafe { frame.write(&output) };
            }
            Ok(())
        })
    }
}

/// Frames on their way.
#[derive(Default)]
struct Queue {
    /// Not begun yet, by their numbers.
    waiting: VecDeque<(u64, Frame)>,
    running: Option<u64>,
    /// Done, and not returned yet.
    done: BTreeMap<u64, Result<()>>,
    /// The last number that was given.
    last: u64,
    /// A thread computes a frame of its own, without the queue.
    direct: bool,
    closing: bool,
    worker: Option<JoinHandle<()>>,
}

impl Queue {
    /// Frames that are submitted and not waited for.
    fn submitted(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some()) + self.done.len()
    }
}

/// What an [`amdanet_session`] shares.
pub struct Session {
    params: Params,
    classes: usize,
    target: Target,
    device: Option<Arc<dyn Driver>>,
    core: Mutex<Core>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

fn busy(what: impl Into<String>) -> Failure {
    Failure::new(amdanet_status::Busy, format!("session: {}", what.into()))
}

/// The right to compute without the queue.
struct Turn<'a>(&'a Session);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.queue().direct = false;
        self.0.changed.notify_all();
    }
}

impl Session {
    fn new(
        params: Params,
        classes: usize,
        target: Target,
        device: Option<Arc<dyn Driver>>,
        core: Core,
    ) -> Self {
        let (core, queue, changed) = (Mutex::new(core), Mutex::default(), Condvar::new());
        Self { params, classes, target, device, core, queue, changed }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing below panics between two changes that belong together.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core, if nothing is being computed.
    fn idle(&self) -> Result<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Ok(core),
            Err(TryLockError::Poisoned(core)) => Ok(core.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let queue = self.queue();
                if queue.direct || queue.running.is_some() {
                    return Err(busy("it computes a frame"));
                }
                drop(queue);
                // Another thread reads what this one is going to read.
                Ok(self.core.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }

    fn check(&self, frame: &amdanet_frame) -> Result<Frame> {
        let frame = Frame::new(frame, self.classes, self.device.as_ref())?;
        match self.params.fixed {
            Some((w, h)) if (w, h) != (frame.width, frame.height) => {
                let what = format!("{}x{}, and the session was made for {w}x{h}", frame.width, frame.height);
                Err(Failure::argument("frame.width and frame.height", what))
            }
            _ => Ok(frame),
        }
    }

    fn take_turn(&self) -> Result<Turn<'_>> {
        let mut queue = self.queue();
        // Whoever freed the session may have freed the pictures too.
        if queue.closing {
            return Err(Failure::new(amdanet_status::Cancelled, "session: it was freed"));
        }
        if queue.direct || queue.running.is_some() {
            return Err(busy("it computes another frame: make a session for each thread"));
        }
        if let Some((number, _)) = queue.waiting.front() {
            return Err(busy(format!("frame {number} is in its queue")));
        }
        queue.direct = true;
        Ok(Turn(self))
    }

    /// Computes a frame; a panic is an error, after which everything is made anew.
    fn compute(&self, frame: &Frame) -> Result<()> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let done = panic::catch_unwind(AssertUnwindSafe(|| core.compute(&self.params, frame)));
        done.unwrap_or_else(|payload| {
            core.reset();
            Err(Failure::panicked(&*payload))
        })
    }

    fn submit(this: &Arc<Self>, frame: Frame) -> Result<u64> {
        let mut queue = this.queue();
        if queue.direct {
            return Err(busy("it computes a frame for another thread"));
        }
        if queue.submitted() >= this.params.queue {
            let n = queue.submitted();
            return Err(busy(format!("{n} frames are submitted, wait for one, or raise params.queue")));
        }
        if queue.closing {
            return Err(Failure::new(amdanet_status::Cancelled, "session: it was freed"));
        }
        if queue.worker.is_none() {
            let session = this.clone();
            let worker = std::thread::Builder::new().name("amdanet queue".into());
            let worker = worker.spawn(move || session.work()).map_err(|e| {
                Failure::new(amdanet_status::OutOfMemory, format!("session: no thread for its queue: {e}"))
            })?;
            queue.worker = Some(worker);
        }
        queue.last += 1;
        let number = queue.last;
        queue.waiting.push_back((number, frame));
        drop(queue);
        this.changed.notify_all();
        Ok(number)
    }

    /// The thread of the queue.
    fn work(&self) {
        let mut queue = self.queue();
        loop {
            if queue.closing {
                return;
            }
            let Some((number, frame)) = queue.waiting.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.running = Some(number);
            drop(queue);
            let end = self.compute(&frame);
            queue = self.queue();
            queue.running = None;
            queue.done.insert(number, end);
            self.changed.notify_all();
        }
    }

    fn wait(&self, number: u64, limit: Option<Instant>) -> Result<()> {
        if is_in_callback() {
            return Err(busy("waiting in a callback would never end"));
        }
        let mut queue = self.queue();
        loop {
            if let Some(end) = queue.done.remove(&number) {
                return end;
            }
            let is_waiting = queue.waiting.iter().any(|(n, _)| *n == number);
            if queue.closing && is_waiting {
                return Err(Failure::new(amdanet_status::Cancelled, "session: it was freed"));
            }
            if !is_waiting && queue.running != Some(number) {
                let what = format!("{number} was never given, or waited for already");
                return Err(Failure::argument("ticket", what));
            }
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            queue = match left {
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let what = format!("frame {number} is not done yet");
                    return Err(Failure::new(amdanet_status::Timeout, what));
                }
                Some(left) => {
                    self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn begin_nothing(&self) {
        self.queue().closing = true;
        self.changed.notify_all();
    }

    /// Returns when nothing is computed; in a callback at once.
    fn close(&self) {
        let mut queue = self.queue();
        if is_in_callback() {
            return;
        }
        while queue.direct || queue.running.is_some() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let worker = queue.worker.take();
        drop(queue);
        if let Some(worker) = worker {
            // What it met was told to whoever waited.
            let _ = worker.join();
        }
    }
}
