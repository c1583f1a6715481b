//! What is computed for one shape of input, in order: steps with their buffers, bytes and operations.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::arena::{Arena, Life, Slice, at_least, place};
use super::product::{Finish, Grid, Instructions, Right, product};
use crate::Tensor;

/// What a step has besides its buffers.
pub struct Context<'a> {
    /// The vector instructions of products.
    pub instructions: Instructions,
    scratch: &'a Scratch,
}

impl<'a> Context<'a> {
    /// The instructions, and scratch memory of every thread.
    pub fn new(instructions: Instructions, scratch: &'a Scratch) -> Self {
        Self { instructions, scratch }
    }

    /// Runs `f` with `lengths` numbers of scratch memory of arbitrary content that belong to the calling thread.
    /// `f` must not wait for other tasks.
    pub fn scratch<const N: usize, R>(&self, lengths: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> R) -> R {
        let mut slot = self.scratch.mine().lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = slot.f32_mut();
        let parts = lengths.map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(16));
            rest = after;
            &mut part[..len]
        });
        f(parts)
    }

    /// [`product`] with the context's instructions.
    pub fn product(&self, m: usize, a: (&[f32], Grid), b: Right, out: (&mut [f32], Grid), finish: Finish) {
        product(self.instructions, m, a, b, out, finish);
    }
}

/// The numbers of scratch memory that [`Context::scratch`] takes for these lengths.
pub fn scratch_len(lengths: &[usize]) -> usize {
    lengths.iter().map(|len| len.next_multiple_of(16)).sum()
}

/// Memory for each thread.
pub struct Scratch {
    slots: Vec<Mutex<Tensor>>,
}

impl Scratch {
    /// None yet.
    pub fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Makes room for `len` numbers on each thread of the pool that calls.
    pub fn reserve(&mut self, len: usize) {
        // One more for a caller outside of every pool.
        let threads = rayon::current_num_threads() + 1;
        while self.slots.len() < threads {
            self.slots.push(Mutex::new(Tensor::zeros([0])));
        }
        for slot in &mut self.slots {
            at_least(slot.get_mut().unwrap_or_else(PoisonError::into_inner), len);
        }
    }

    fn mine(&self) -> &Mutex<Tensor> {
        let index = rayon::current_thread_index().map_or(0, |i| i + 1);
        &self.slots[index % self.slots.len()]
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

type Run = Box<dyn Fn(&Context, &mut Arena) + Send + Sync>;

/// One step.
pub struct Step {
    /// What it computes.
    pub name: String,
    /// Bytes of its buffers, each counted once.
    pub bytes: usize,
    /// Operations of its products, 2 for each multiply-add.
    pub operations: usize,
    /// Seconds that it took, the least of the runs that were timed.
    pub seconds: f64,
}

/// Is told of each step that was computed, with its seconds and the number of all steps; can stop the run.
pub type Watch<'a> = &'a mut (dyn FnMut(&Step, f64, usize) -> ControlFlow<()> + Send);

/// The steps for one shape, for reading.
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// Bytes of all buffers together.
    pub arena: usize,
    /// Bytes of scratch memory on each thread.
    pub scratch: usize,
}

/// A plan that the CPU can carry out.
pub struct Program {
    /// The steps.
    pub plan: Plan,
    runs: Vec<Run>,
    starts: Vec<usize>,
    /// Numbers in the arena.
    pub len: usize,
    /// Numbers of scratch memory on each thread.
    pub scratch: usize,
}

impl Program {
    /// Computes every step; with `watch`, notes how long each takes. Returns whether it came to the end.
    pub fn run(&mut self, context: &Context, memory: &mut [f32], mut watch: Option<Watch>) -> bool {
        let mut arena = Arena { memory, starts: &self.starts };
        let total = self.runs.len();
        for (step, run) in self.plan.steps.iter_mut().zip(&self.runs) {
            let start = watch.is_some().then(Instant::now);
            run(context, &mut arena);
            if let (Some(start), Some(watch)) = (start, &mut watch) {
                let seconds = start.elapsed().as_secs_f64();
                step.seconds = step.seconds.min(seconds);
                if watch(step, seconds, total).is_break() {
                    return false;
                }
            }
        }
        true
    }

    /// Where a buffer is in the arena.
    pub fn range(&self, slice: Slice) -> std::ops::Range<usize> {
        let start = self.starts[slice.buffer] + slice.start;
        start..start + slice.len
    }
}

/// One line for each step, steps of equal name together; with times where there are any.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Row<'a> {
            name: &'a str,
            count: usize,
            bytes: usize,
            operations: usize,
            seconds: f64,
        }
        let mut rows: Vec<Row> = Vec::new();
        for step in &self.steps {
            let Step { name, bytes, operations, seconds, .. } = step;
            match rows.iter_mut().find(|row| row.name == name) {
                Some(row) => {
                    row.count += 1;
                    row.bytes += bytes;
                    row.operations += operations;
                    row.seconds += seconds;
                }
                None => rows.push(Row {
                    name,
                    count: 1,
                    bytes: *bytes,
                    operations: *operations,
                    seconds: *seconds,
                }),
            }
        }
        let timed = rows.iter().all(|row| row.seconds.is_finite());
        let line = |f: &mut fmt::Formatter<'_>, row: &Row| {
            write!(
                f,
                "{:>5} x {:>9.3} MB {:>9.3} GFLOP",
                row.count,
                row.bytes as f64 / 1e6,
                row.operations as f64 / 1e9
            )?;
            if timed {
                write!(
                    f,
                    " {:>9.3} ms {:>6.1} GFLOP/s",
                    row.seconds * 1e3,
                    row.operations as f64 / row.seconds / 1e9
                )?;
            }
            writeln!(f, "  {}", row.name)
        };
        for row in &rows {
            line(f, row)?;
        }
        let total = Row {
            name: "all steps",
            count: self.steps.len(),
            bytes: rows.iter().map(|r| r.bytes).sum(),
            operations: rows.iter().map(|r| r.operations).sum(),
            seconds: rows.iter().map(|r| r.seconds).sum(),
        };
        line(f, &total)?;
        write!(f, "arena {:.1} MB", self.arena as f64 / 1e6)?;
        match self.scratch {
            0 => Ok(()),
            scratch => write!(f, ", scratch {:.1} MB on each thread", scratch as f64 / 1e6),
        }
    }
}

/// A plan in the making.
#[derive(Default)]
pub struct Builder {
    lives: Vec<Life>,
    steps: Vec<Step>,
    runs: Vec<Run>,
    scratch: usize,
}

impl Builder {
    /// A buffer of `len` numbers.
    pub fn buffer(&mut self, len: usize) -> Slice {
        self.lives.push(Life { len, steps: 0..0 });
        Slice { buffer: self.lives.len() - 1, start: 0, len }
    }

    /// A step on `buffers`, read or written. `scratch` is what one task needs, see [`scratch_len`].
    pub fn step<const N: usize>(
        &mut self,
        name: impl Into<String>,
        buffers: [Slice; N],
        operations: usize,
        scratch: usize,
        run: impl Fn(&Context, [&mut [f32]; N]) + Send + Sync + 'static,
    ) {
        let index = self.steps.len();
        for slice in buffers {
            let life = &mut self.lives[slice.buffer].steps;
            *life = if life.end == 0 { index..index + 1 } else { life.start..index + 1 };
        }
        self.scratch = self.scratch.max(scratch);
        self.steps.push(Step {
            name: name.into(),
            bytes: buffers.iter().map(|s| 4 * s.len).sum(),
            operations,
            seconds: f64::INFINITY,
        });
        self.runs.push(Box::new(move |context, arena| run(context, arena.views(buffers))));
    }

    /// The plan. `inputs` are there before the first step, `outputs` stay after the last.
    pub fn finish(mut self, inputs: &[Slice], outputs: &[Slice]) -> Program {
        let last = self.steps.len();
        for slice in inputs {
            self.lives[slice.buffer].steps.start = 0;
        }
        for slice in outputs {
            self.lives[slice.buffer].steps.end = last;
        }
        let (starts, len) = place(&self.lives);
        let Self { steps, runs, scratch, .. } = self;
        Program { plan: Plan { steps, arena: 4 * len, scratch: 4 * scratch }, runs, starts, len, scratch }
    }
}
