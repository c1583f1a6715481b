//! The shared memory of a block, and in checked mode what its threads have done to each byte.

use memmap2::MmapMut;

use crate::block::WARP;

/// Bytes before and after the shared memory that are nobody's.
const MARGIN: usize = 1 << 20;

/// The most that a launch can ask for, on any device.
pub const MAX_SHARED: usize = 227 << 10;

/// How a thread touches memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It reads and writes in one step.
    Atomic,
}

/// The shared memory of one thread of the host, which runs one block at a time.
pub struct Shared {
    map: MmapMut,
    bytes: usize,
    checked: bool,
    initialised: Vec<bool>,
    records: Vec<Record>,
    /// Counts barriers of blocks, and blocks: what happened in an earlier epoch is ordered before.
    epoch: u32,
    /// For each thread, what it knows of its warp: the clock of each lane when they last met.
    clocks: Vec<[u32; WARP]>,
}

/// A thread and the value of its clock.
#[derive(Clone, Copy, Default)]
struct Event {
    thread: u16,
    clock: u32,
}

/// Who touched a byte since the last barrier of the block.
#[derive(Clone, Copy, Default)]
struct Record {
    epoch: u32,
    atomic: bool,
    writer: Option<Event>,
    /// The latest reader, the latest of another lane of its warp, the latest of another warp: whoever writes next,
    /// one of these stands for every reader that it may conflict with.
    readers: [Option<Event>; 3],
}

impl Shared {
    pub fn new() -> Self {
        Self {
            map: MmapMut::map_anon(3 * MARGIN).expect("the system reserves addresses"),
            bytes: 0,
            checked: false,
            initialised: Vec::new(),
            records: Vec::new(),
            epoch: 0,
            clocks: Vec::new(),
        }
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.map.as_ptr() as usize + MARGIN
    }

    /// Whether the address is in it or not far from it.
    pub fn covers(&self, address: usize) -> bool {
        address.wrapping_sub(self.map.as_ptr() as usize) < 3 * MARGIN
    }

    /// Forgets the last block.
    pub fn begin_block(&mut self, bytes: usize, threads: usize, checked: bool) {
        self.bytes = bytes;
        self.checked = checked;
        self.map[MARGIN..MARGIN + bytes].fill(0xFF);
        if checked {
            self.initialised.clear();
            self.initialised.resize(bytes, false);
            self.records.resize(self.records.len().max(bytes), Record::default());
            self.clocks.clear();
            self.clocks.resize(threads, [0; WARP]);
            self.clocks.iter_mut().enumerate().for_each(|(thread, clock)| clock[thread % WARP] = 1);
            self.block_barrier();
        }
    }

    /// All threads of the block have met.
    pub fn block_barrier(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Lanes of a warp have met.
    pub fn warp_barrier(&mut self, warp: usize, mask: u32) {
        if !self.checked {
            return;
        }
        let warp = &mut self.clocks[warp * WARP..];
        let lanes = || (0..WARP).filter(|lane| mask >> lane & 1 == 1);
        let mut met = [0; WARP];
        for lane in lanes() {
            met.iter_mut().zip(warp[lane]).for_each(|(met, known)| *met = known.max(*met));
        }
        for lane in lanes() {
            warp[lane] = met;
            warp[lane][lane] += 1;
        }
    }

    /// Forgets that something was written, because something else is on its way.
    pub fn expect(&mut self, offset: usize, bytes: usize) {
        self.map[MARGIN + offset..][..bytes].fill(0xFF);
        if self.checked {
            self.initialised[offset..offset + bytes].fill(false);
        }
    }

    /// Checks an access in checked mode, and remembers it.
    pub fn access(
        &mut self,
        thread: usize,
        address: usize,
        bytes: usize,
        kind: Access,
    ) -> Result<(), String> {
        let start = address.wrapping_sub(self.address());
        if start >= self.bytes || bytes > self.bytes - start {
            return Err(self.out_of_bounds(address, bytes, kind));
        }
        if !self.checked {
            return Ok(());
        }
        for offset in start..start + bytes {
            if kind == Access::Write {
                self.initialised[offset] = true;
            } else if !self.initialised[offset] {
                return Err(format!("uninitialised read of shared memory at byte {offset}"));
            }
            if let Some(other) = self.touch(offset, thread, kind) {
                return Err(format!(
                    "race: it {} byte {offset} of shared memory that thread {other} has touched with no barrier in \
                     between, and one of them writes",
                    if kind == Access::Read { "reads" } else { "writes" }
                ));
            }
        }
        Ok(())
    }

    fn out_of_bounds(&self, address: usize, bytes: usize, kind: Access) -> String {
        let what = if kind == Access::Read { "read" } else { "write" };
        format!(
            "out of bounds: a {what} of {bytes} bytes at byte {} of shared memory, which has {}",
            address as isize - self.address() as isize,
            self.bytes
        )
    }

    /// Remembers that a thread touches a byte; the thread that this races with, if there is one.
    fn touch(&mut self, offset: usize, thread: usize, kind: Access) -> Option<usize> {
        let record = &mut self.records[offset];
        if record.epoch != self.epoch {
            *record = Record { epoch: self.epoch, ..Record::default() };
        }
        let known = &self.clocks[thread];
        let races = |other: &Event| {
            let other_thread = usize::from(other.thread);
            let same_warp = other_thread / WARP == thread / WARP;
            other_thread != thread && !(same_warp && other.clock <= known[other_thread % WARP])
        };
        let both_atomic = kind == Access::Atomic && record.atomic;
        let writer = record.writer.as_ref().filter(|writer| !both_atomic && races(writer));
        let reader = record.readers.iter().flatten().find(|reader| kind != Access::Read && races(reader));
        if let Some(other) = writer.or(reader) {
            return Some(usize::from(other.thread));
        }
        let event = Event { thread: thread as u16, clock: known[thread % WARP] };
        if kind == Access::Read {
            record.read(event);
        } else {
            record.writer = Some(event);
            record.atomic = kind == Access::Atomic;
        }
        None
    }
}

impl Record {
    fn read(&mut self, event: Event) {
        let warp = |event: Event| usize::from(event.thread) / WARP;
        match self.readers[0] {
            Some(latest) if latest.thread == event.thread => {}
            Some(latest) if warp(latest) == warp(event) => self.readers[1] = Some(latest),
            Some(latest) => self.readers = [None, None, Some(latest)],
            None => {}
        }
        self.readers[0] = Some(event);
    }
}
