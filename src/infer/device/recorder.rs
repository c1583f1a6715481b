//! A plan by recording: the launches of one forward pass, their buffers in one arena.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cuda::driver::{Arg, Driver, Graph, Launch, Memory, Product, Task, Work};
use crate::infer::arena::{Life, place};
use crate::infer::plan::{Plan, Step, Watch};
use crate::{Error, Result};

/// Addresses from here on are those of buffers that are planned: the number of the buffer, then the byte within it.
const PLANNED: u64 = 1 << 62;
/// Bits for the byte within a buffer.
const WITHIN: u32 = 40;
/// What a device aligns allocations to, and so do plans.
const ALIGNMENT: usize = 256;

/// Every address of a task.
fn addresses(task: &mut Task) -> Vec<&mut u64> {
    match task {
        Task::Copy { from, to, .. } => vec![from, to],
        Task::Fill { to, .. } => vec![to],
        Task::Launch { args, .. } => {
            let pointers = args.iter_mut().filter_map(|arg| match arg {
                Arg::Pointer(address) => Some(address),
                _ => None,
            });
            pointers.collect()
        }
        Task::Product(Product { a, b, c, bias, residual, .. }) => {
            let matrices = [a, b, c].into_iter().chain(residual);
            matrices.map(|matrix| &mut matrix.address).chain(bias).collect()
        }
    }
}

/// The number of a planned buffer, and the byte within it.
fn planned(address: u64) -> Option<(usize, u64)> {
    let planned = address.checked_sub(PLANNED)?;
    Some(((planned >> WITHIN) as usize, planned & ((1 << WITHIN) - 1)))
}

#[derive(Default)]
struct Recording {
    tasks: Vec<Task>,
    names: Vec<String>,
    buffers: Vec<Life>,
    label: String,
    aside: Vec<Range<usize>>,
    join: usize,
}

/// A device that can take notes of its work instead of doing it. Between [`Recorder::begin`] and [`Recorder::end`],
/// buffers have no memory yet; at other times everything is passed on.
pub struct Recorder {
    device: Arc<dyn Driver>,
    recording: Mutex<Option<Recording>>,
}

impl Recorder {
    /// In front of `device`.
    pub fn new(device: &Arc<dyn Driver>) -> Arc<Self> {
        Arc::new(Self { device: device.clone(), recording: Mutex::new(None) })
    }

    /// The device itself.
    pub fn device(&self) -> &Arc<dyn Driver> {
        &self.device
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on work is noted.
    pub fn begin(&self) {
        *self.recording() = Some(Recording::default());
    }

    /// What the next steps belong to.
    pub fn label(&self, label: String) {
        if let Some(recording) = &mut *self.recording() {
            recording.label = label;
        }
    }

    /// Notes that what `work` queues may be done beside what comes after it, up to [`Recorder::join`].
    ///
    /// # Errors
    /// Those of `work`.
    pub fn aside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let tasks = || self.recording().as_ref().map_or(0, |recording| recording.tasks.len());
        let start = tasks();
        let done = work()?;
        let range = start..tasks();
        if let Some(recording) = &mut *self.recording() {
            recording.aside.push(range);
        }
        Ok(done)
    }

    /// Notes that what comes now needs all that is done aside. What that touches has a place of its own up to here.
    pub fn join(&self) {
        let Some(recording) = &mut *self.recording() else { return };
        let Recording { tasks, buffers, aside, join, .. } = recording;
        *join = tasks.len();
        for range in aside {
            let addresses = tasks[range.clone()].iter_mut().flat_map(addresses);
            for (number, _) in addresses.filter_map(|address| planned(*address)) {
                let end = &mut buffers[number].steps.end;
                *end = (*end).max(*join);
            }
        }
    }

    /// Forgets what was noted.
    pub fn cancel(&self) {
        *self.recording() = None;
    }

    /// What was noted, ready to be done; every buffer that was made since [`Recorder::begin`] has been freed.
    ///
    /// # Errors
    /// When the device has not enough memory, or reports another error.
    pub fn end(&self) -> Result<Recorded> {
        let recording = self.recording().take();
        let recording = recording.ok_or_else(|| Error::cuda("a plan", "nothing was recorded"))?;
        let Recording { mut tasks, names, mut buffers, aside, join, .. } = recording;
        if aside.last().is_some_and(|range| range.end > join) {
            return Err(Error::cuda("a plan", "what is done aside is never waited for"));
        }
        for life in &mut buffers {
            life.steps.end = life.steps.end.min(tasks.len());
        }
        let (starts, bytes) = place(&buffers);
        let arena = Memory::new(&self.device, bytes)?;
        for address in tasks.iter_mut().flat_map(addresses) {
            if let Some((number, within)) = planned(*address) {
                *address = arena.address() + starts[number] as u64 + within;
            }
        }
        let steps = names.into_iter().zip(&tasks).map(|(name, task)| {
            let Work { bytes, operations } = task.work();
            let (bytes, operations) = (bytes as usize, operations as usize);
            Step { name, bytes, operations, seconds: f64::INFINITY }
        });
        let plan = Plan { steps: steps.collect(), arena: bytes, scratch: 0 };
        Ok(Recorded { graph: None, plan, tasks, aside, join, _arena: arena })
    }
}

/// The work of a forward pass, on memory of its own.
pub struct Recorded {
    /// The tasks as one graph, made after they first ran. It goes before the memory that it uses.
    graph: Option<Box<dyn Graph>>,
    /// Its steps.
    pub plan: Plan,
    tasks: Vec<Task>,
    /// Tasks that may be done beside those that follow them, and the first one that needs them.
    aside: Vec<Range<usize>>,
    join: usize,
    _arena: Memory,
}

impl Recorded {
    /// Queues all of it, always on the same queue.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// The tensors that were there when it was recorded are there still, and `queue` is one of their device.
    pub unsafe fn launch(&mut self, queue: &dyn Driver) -> Result<()> {
        if let Some(graph) = &self.graph {
            // SAFETY: buffers lie in the arena, and the caller vouches for the rest.
            return unsafe { graph.launch() };
        }
        // SAFETY: as above. Now kernels are loaded and products planned, for which a capture is no time.
        unsafe { self.run(queue)? };
        if queue.begin_capture().is_err() {
            return Ok(());
        }
        // SAFETY: as above.
        let queued = unsafe { self.run(queue) };
        // Also after an error, so that the queue does not go on recording. Another thread that waits for the whole device
        // spoils a capture; this time's work is queued all the same, and the next time captures again.
        self.graph = queue.end_capture().ok().filter(|_| queued.is_ok());
        Ok(())
    }

    /// Queues all of it, one by one.
    ///
    /// # Safety
    /// As [`Recorded::launch`].
    unsafe fn run(&self, queue: &dyn Driver) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        let run =
            |range: Range<usize>| self.tasks[range].iter().try_for_each(|task| unsafe { task.run(queue) });
        let to_join = || {
            let mut next = 0;
            for range in &self.aside {
                run(next..range.start)?;
                queue.aside()?;
                let done = run(range.clone());
                queue.back();
                done?;
                next = range.end;
            }
            run(next..self.join)
        };
        let done = to_join();
        // After an error too, so that nobody gives back what is in use there.
        let joined = if self.join > 0 { queue.join() } else { Ok(()) };
        done.and(joined)?;
        run(self.join..self.tasks.len())
    }

    /// Does it step by step, notes the time of each, and then tells `watch` of them; whether that let it come to the end.
    ///
    /// # Errors
    /// When the device reports one.
    ///
    /// # Safety
    /// As [`Recorded::launch`].
    pub unsafe fn launch_watched(&mut self, queue: &dyn Driver, watch: Watch) -> Result<bool> {
        let mut marks = vec![queue.mark()?];
        for task in &self.tasks {
            // SAFETY: as in `launch`.
            unsafe { task.run(queue)? };
            marks.push(queue.mark()?);
        }
        queue.synchronise()?;
        let total = self.tasks.len();
        for (step, marks) in self.plan.steps.iter_mut().zip(marks.windows(2)) {
            let seconds = f64::from(queue.between(marks[0], marks[1])?) * 1e-3;
            step.seconds = step.seconds.min(seconds);
            if watch(step, seconds, total).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Recorder {
    /// Notes a task, or does it.
    ///
    /// # Safety
    /// What it touches belongs to the caller.
    unsafe fn queue(&self, task: Task) -> Result<()> {
        match &mut *self.recording() {
            Some(recording) => {
                recording.names.push(format!("{}: {}", recording.label, task.name()));
                recording.tasks.push(task);
                Ok(())
            }
            // SAFETY: the caller's promise is passed on.
            None => unsafe { task.run(&*self.device) },
        }
    }
}

impl Driver for Recorder {
    fn name(&self) -> String {
        self.device.name()
    }

    fn capability(&self) -> (u32, u32) {
        self.device.capability()
    }

    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>> {
        self.device.clone().queue()
    }

    unsafe fn follow(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise is passed on, here and below.
        unsafe { self.device.follow(stream) }
    }

    unsafe fn lead(&self, stream: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.lead(stream) }
    }

    fn holds(&self, address: u64) -> bool {
        self.device.holds(address)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut recording = self.recording();
        let Some(recording) = &mut *recording else { return self.device.allocate(bytes) };
        if bytes >> WITHIN > 0 {
            return Err(Error::cuda(format_args!("a buffer of {bytes} bytes"), "more than any device has"));
        }
        let number = recording.buffers.len() as u64;
        let first = recording.tasks.len();
        recording.buffers.push(Life { len: bytes.next_multiple_of(ALIGNMENT), steps: first..usize::MAX });
        Ok(PLANNED + (number << WITHIN))
    }

    fn free(&self, address: u64, bytes: usize) {
        let Some((number, _)) = planned(address) else { return self.device.free(address, bytes) };
        if let Some(Recording { tasks, buffers, .. }) = &mut *self.recording()
            && let Some(life) = buffers.get_mut(number)
        {
            life.steps.end = tasks.len();
        }
    }

    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.upload(data, to) }
    }

    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.download(from, data) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.queue(Task::Copy { from, to, bytes }) }
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.queue(Task::Fill { to, byte, bytes }) }
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.queue(Task::of(launch)) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.queue(Task::Product(*product)) }
    }

    fn synchronise(&self) -> Result<()> {
        self.device.synchronise()
    }

    fn mark(&self) -> Result<u64> {
        self.device.mark()
    }

    fn between(&self, start: u64, end: u64) -> Result<f32> {
        self.device.between(start, end)
    }

    fn begin_capture(&self) -> Result<()> {
        self.device.begin_capture()
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        self.device.end_capture()
    }
}
