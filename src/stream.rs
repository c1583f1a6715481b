//! Fusing frames as they come: raw frames in, raw frames out.
//!
//! A thread reads, others compute a frame each, a thread writes what they have made in the order of the frames. There is one
//! frame more than are computed at once, which is read or written meanwhile. Frames are recycled, so that a stream in flow
//! allocates nothing for them; a slow reader of the output, or a slow network, holds back whoever writes the input.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::infer::{Pairs, Pixels};
use crate::model::{LARGEST_SIDE, SMALLEST_SIDE};
use crate::{Error, Result};

/// Significant digits of latencies.
const DIGITS: u8 = 3;

/// Time between two looks at the output while no frame comes.
const LOOK: Duration = Duration::from_millis(100);

/// Size of the frames, and what is written for each.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Whether the labels, gray8, follow each fused frame.
    pub labels: bool,
}

impl Format {
    /// Whether the network can compute frames of this size.
    ///
    /// # Errors
    /// When a side is below 32 or above 16384.
    pub fn validate(&self) -> Result<()> {
        let Self { width, height, .. } = *self;
        if width.min(height) < SMALLEST_SIDE || width.max(height) > LARGEST_SIDE {
            return Err(Error::Config(format!(
                "frames of {width}x{height} pixels: both sides must be {SMALLEST_SIDE} to {LARGEST_SIDE}"
            )));
        }
        Ok(())
    }

    fn pixels(&self) -> usize {
        self.width * self.height
    }
}

/// Where frames come from, and what it is called in messages.
pub struct Source<R> {
    /// Raw bytes.
    pub from: R,
    /// "standard input", or the name of a file.
    pub name: String,
}

/// What was done so far.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Microseconds from the arrival of a frame's last byte to the handing over of the last byte that was made of it.
    latencies: Histogram<u64>,
    /// When the first frame was there, and when the last was written.
    span: Option<(Instant, Instant)>,
}

impl Statistics {
    fn new() -> Self {
        // As many digits as are shown.
        let latencies = Histogram::new(DIGITS).expect("0 to 5 digits are allowed");
        Self { latencies, span: None }
    }

    fn note(&mut self, arrived: Instant, written: Instant) {
        self.latencies.saturating_record((written - arrived).as_micros() as u64);
        let first = self.span.map_or(arrived, |(first, _)| first);
        self.span = Some((first, written));
    }

    /// Frames that were written.
    pub fn frames(&self) -> usize {
        self.latencies.len() as usize
    }

    /// Frames per second, from the arrival of the first to the writing of the last; 0 without frames.
    pub fn rate(&self) -> f64 {
        let span = self.span.map_or(Duration::ZERO, |(first, last)| last - first);
        if span.is_zero() { 0.0 } else { self.frames() as f64 / span.as_secs_f64() }
    }

    /// Median and largest latency in seconds; 0 without frames.
    pub fn latency(&self) -> (f64, f64) {
        let seconds = |micros: u64| micros as f64 / 1e6;
        (seconds(self.latencies.value_at_quantile(0.5)), seconds(self.latencies.max()))
    }
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Every frame was fused and written.
    Input,
    /// Nobody reads the output any more.
    Output,
}

/// Both frames of a pair, rgb24; when they were complete.
struct Pair {
    visible: Vec<u8>,
    infrared: Vec<u8>,
    arrived: Instant,
}

/// What is written for a pair; when the pair was complete, and when this was handed over.
struct Written {
    bytes: Vec<u8>,
    arrived: Instant,
    written: Option<Instant>,
}

/// Fuses frames until the input ends.
///
/// `visible` holds rgb24 frames, height·width·3 bytes each; `infrared` gray8 frames of height·width bytes. Without
/// `infrared` each rgb24 frame is followed by its gray8 frame in `visible`. `computers` take turns, each in a thread of its
/// own, and are given a pair and a function that takes the fused picture, rgb24, and the labels. The output has a fused
/// frame for each pair, followed by its labels if they are wanted. `watch` sees the statistics after each frame.
///
/// # Errors
/// When the size cannot be used (before anything is read), there is no frame, the last is not complete, the infrared
/// frames end before the visible ones, or reading, computing or writing fails; what was complete is written first.
pub fn stream<R, I, W, C>(
    visible: Source<R>,
    infrared: Option<Source<I>>,
    output: W,
    format: Format,
    computers: impl IntoIterator<Item = C, IntoIter: ExactSizeIterator>,
    mut watch: impl FnMut(&Statistics),
) -> Result<(End, Statistics)>
where
    R: Read + Send + 'static,
    I: Read + Send + 'static,
    W: Write + Send + 'static,
    C: FnMut(&Pairs, &mut dyn FnMut(&[u8], &[u8])) -> Result<()> + Send,
{
    format.validate()?;
    let computers = computers.into_iter();
    let frames = 1 + computers.len();
    let (pairs, empty_pairs) = reader(visible, infrared, format, frames);
    let mut statistics = Statistics::new();
    let mut note = |written: &Written| {
        if let Some(at) = written.written {
            statistics.note(written.arrived, at);
            watch(&statistics);
        }
    };
    let (read, computed, written) = thread::scope(|scope| {
        let (mut jobs, mut results, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for compute in computers {
            let ((job, to_do), (result, done)) = (sync_channel(1), sync_channel(1));
            let back = empty_pairs.clone();
            threads.push(scope.spawn(move || work(compute, format, to_do, &back, &result)));
            jobs.push(job);
            results.push(done);
        }
        // The reader ends when nobody gives frames back any more.
        drop(empty_pairs);
        let writer = Writer::new(output, results, frames);
        let mut read = Ok(());
        for job in jobs.iter().cycle() {
            let pair = match next_pair(&pairs, &writer) {
                Some(Ok(pair)) => pair,
                Some(Err(e)) => {
                    read = Err(e);
                    break;
                }
                None => break,
            };
            let Ok(next) = writer.empty.recv() else { break };
            note(&next);
            // Whoever takes no more has met an error.
            if job.send((pair, next)).is_err() {
                break;
            }
        }
        drop(jobs);
        let end = |thread: thread::ScopedJoinHandle<Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let ends: Vec<Result<()>> = threads.into_iter().map(end).collect();
        // The reader may wait for a source that says nothing more: it is left alone. The writer finishes what it has.
        (read, ends.into_iter().collect::<Result<()>>(), writer.finish(note))
    });
    match written {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok((End::Output, statistics)),
        Err(e) => return Err(Error::io("standard output", "write")(e)),
        Ok(()) => computed.and(read)?,
    }
    Ok((End::Input, statistics))
}

/// A thread that computes.
fn work(
    mut compute: impl FnMut(&Pairs, &mut dyn FnMut(&[u8], &[u8])) -> Result<()>,
    Format { width, height, labels: with_labels }: Format,
    to_do: Receiver<(Pair, Written)>,
    back: &SyncSender<Pair>,
    result: &SyncSender<Written>,
) -> Result<()> {
    for (pair, mut next) in to_do {
        let (visible, infrared) = (Pixels::Bytes(&pair.visible), Pixels::Bytes(&pair.infrared));
        let Written { bytes, .. } = &mut next;
        bytes.clear();
        compute(&Pairs { batch: 1, height, width, visible, infrared }, &mut |fused, labels| {
            bytes.extend_from_slice(fused);
            if with_labels {
                bytes.extend_from_slice(labels);
            }
        })?;
        (next.arrived, next.written) = (pair.arrived, None);
        // A reader that has ended needs no more frames.
        let _ = back.send(pair);
        if result.send(next).is_err() {
            break;
        }
    }
    Ok(())
}

/// The next pair, or none when the input has ended, or nobody takes the output any more, which a source that has nothing
/// to say just now must not hide.
fn next_pair(pairs: &Receiver<Result<Pair>>, writer: &Writer) -> Option<Result<Pair>> {
    loop {
        match pairs.recv_timeout(LOOK) {
            Ok(pair) => return Some(pair),
            Err(RecvTimeoutError::Timeout) if !writer.thread.is_finished() => {}
            Err(_) => return None,
        }
    }
}

/// Starts the thread that reads: complete pairs, an error at the end if there is one; and the way back for them.
fn reader<R, I>(
    mut visible: Source<R>,
    mut infrared: Option<Source<I>>,
    format: Format,
    frames: usize,
) -> (Receiver<Result<Pair>>, SyncSender<Pair>)
where
    R: Read + Send + 'static,
    I: Read + Send + 'static,
{
    let (full, pairs) = sync_channel(frames);
    let (empty_pairs, empty) = sync_channel(frames);
    let pixels = format.pixels();
    for _ in 0..frames {
        let new =
            Pair { visible: vec![0; 3 * pixels], infrared: vec![0; 3 * pixels], arrived: Instant::now() };
        let _ = empty_pairs.send(new);
    }
    thread::spawn(move || {
        let mut gray = vec![0; pixels];
        for (frame, mut pair) in (1..).zip(empty) {
            let read = match &mut infrared {
                None => visible.read_pair(frame, &mut pair.visible, &mut gray),
                Some(infrared) => visible
                    .read(frame, &mut pair.visible)
                    .and_then(|there| if there { infrared.follow(frame, &mut gray) } else { Ok(false) }),
            };
            let there = match read {
                Ok(true) => Ok(pair),
                Ok(false) => break,
                Err(e) => Err(e),
            };
            let there = there.map(|mut pair| {
                pair.arrived = Instant::now();
                for (rgb, &v) in pair.infrared.as_chunks_mut::<3>().0.iter_mut().zip(&gray) {
                    *rgb = [v; 3];
                }
                pair
            });
            let end = there.is_err();
            if full.send(there).is_err() || end {
                break;
            }
        }
    });
    (pairs, empty_pairs)
}

impl<R: Read> Source<R> {
    /// As many bytes as there are, up to the length of `to`.
    fn fill(&mut self, to: &mut [u8]) -> Result<usize> {
        let mut at = 0;
        while at < to.len() {
            match self.from.read(&mut to[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.name, "read")(e)),
            }
        }
        Ok(at)
    }

    fn error(&self, what: String) -> Error {
        Error::file(Path::new(&self.name), what)
    }

    /// What comes when a frame of `wanted` bytes should: nothing, or too little.
    fn ended(&self, frame: usize, found: usize, wanted: usize, kind: &str) -> Result<bool> {
        match (frame, found) {
            (1, 0) => Err(self.error(format!(
                "holds no frame: {kind} of {wanted} bytes was expected; does the program before it write raw video \
                 of the size that --width and --height say?"
            ))),
            (_, 0) => Ok(false),
            _ => Err(self.error(format!(
                "ends within frame {frame}, after {found} of {wanted} bytes: the {} before it were written; was the \
                 input cut off, or are --width and --height those of another size?",
                frame - 1
            ))),
        }
    }

    /// Reads a frame; whether there was one.
    fn read(&mut self, frame: usize, to: &mut [u8]) -> Result<bool> {
        match self.fill(to)? {
            n if n == to.len() => Ok(true),
            n => self.ended(frame, n, to.len(), "an rgb24 frame"),
        }
    }

    /// Reads a frame and the one after it.
    fn read_pair(&mut self, frame: usize, rgb: &mut [u8], gray: &mut [u8]) -> Result<bool> {
        let mut found = self.fill(rgb)?;
        if found == rgb.len() {
            found += self.fill(gray)?;
        }
        match rgb.len() + gray.len() {
            wanted if found == wanted => Ok(true),
            wanted => self.ended(frame, found, wanted, "an rgb24 frame with the gray8 frame after it"),
        }
    }

    /// Reads the frame that belongs to one that is there already.
    fn follow(&mut self, frame: usize, to: &mut [u8]) -> Result<bool> {
        match self.fill(to)? {
            n if n == to.len() => Ok(true),
            0 if frame > 1 => Err(self.error(format!(
                "ends after {} frames, and there are more visible ones: those that have both were written",
                frame - 1
            ))),
            n => self.ended(frame, n, to.len(), "a gray8 frame"),
        }
    }
}

/// The thread that writes.
struct Writer {
    empty: Receiver<Written>,
    thread: thread::JoinHandle<io::Result<()>>,
}

impl Writer {
    /// Writes what comes of `results`, one from each by turns, until there is no more.
    fn new<W: Write + Send + 'static>(mut output: W, results: Vec<Receiver<Written>>, frames: usize) -> Self {
        let (back, empty) = sync_channel(frames);
        for _ in 0..frames {
            let _ = back.send(Written { bytes: Vec::new(), arrived: Instant::now(), written: None });
        }
        let thread = thread::spawn(move || {
            for result in results.iter().cycle() {
                let Ok(mut next) = result.recv() else { break };
                output.write_all(&next.bytes)?;
                output.flush()?;
                next.written = Some(Instant::now());
                // There is room for all; when the other end is gone, so is the interest in them.
                let _ = back.send(next);
            }
            Ok(())
        });
        Self { empty, thread }
    }

    /// Waits until everything is written.
    fn finish(self, mut note: impl FnMut(&Written)) -> io::Result<()> {
        self.empty.iter().for_each(|written| note(&written));
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes panicked")))
    }
}
