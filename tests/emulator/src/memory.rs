//! Device memory: allocations in one reserved range of addresses, and what is known of each byte.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use memmap2::{MmapMut, MmapOptions};

/// Addresses that are reserved; memory is behind those that are used.
const RANGE: usize = 1 << 38;

/// What the shadow says of a byte: not allocated (0), allocated, initialised.
const ALLOCATED: u8 = 1;
const INITIALISED: u8 = 3;

/// Why an access is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Some byte belongs to no allocation.
    OutOfBounds,
    /// Some byte was never written.
    Uninitialised,
}

/// All device memory of one emulator.
pub struct DeviceMemory {
    base: usize,
    /// A byte for each byte of the range, in checked mode.
    shadow: Option<*mut u8>,
    table: Mutex<Table>,
    _maps: Vec<MmapMut>,
}

// SAFETY: the pointers are to mappings that live as long as this does. The shadow is accessed as atomics; device
// memory itself is what kernels race on if they are wrong.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

#[derive(Default)]
struct Table {
    live: BTreeMap<usize, usize>,
    freed: BTreeMap<usize, usize>,
    /// Freed places by their size, where they are used again.
    reusable: HashMap<usize, Vec<usize>>,
    end: usize,
    live_bytes: usize,
}

impl DeviceMemory {
    pub fn new(checked: bool) -> Self {
        let reserve = || {
            MmapOptions::new().len(RANGE).no_reserve_swap().map_anon().expect("the system reserves addresses")
        };
        let mut maps = vec![reserve()];
        let base = maps[0].as_mut_ptr() as usize;
        let shadow = checked.then(|| {
            let mut map = reserve();
            let shadow = map.as_mut_ptr();
            maps.push(map);
            shadow
        });
        Self { base, shadow, table: Mutex::default(), _maps: maps }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn live_bytes(&self) -> usize {
        self.table().live_bytes
    }

    pub fn live_allocations(&self) -> usize {
        self.table().live.len()
    }

    /// `None` when the range is used up.
    pub fn allocate(&self, bytes: usize) -> Option<u64> {
        // Behind each allocation is a gap, so that a small overrun meets no other one.
        let place = bytes.checked_add(2 * 256)? / 256 * 256;
        let mut table = self.table();
        let address = match table.reusable.get_mut(&place).and_then(Vec::pop) {
            Some(address) => address,
            None => {
                let start = table.end;
                // The last part stays empty: an access at its end touches the shadow a little further on.
                let end = start.checked_add(place).filter(|end| *end < RANGE - (1 << 20))?;
                table.end = end;
                self.base + start
            }
        };
        table.live.insert(address, bytes);
        table.live_bytes += bytes;
        // SAFETY: the place lies within the range and belongs to nobody else yet.
        unsafe { (address as *mut u8).write_bytes(0xFF, bytes) };
        self.mark(address, bytes, ALLOCATED);
        Some(address as u64)
    }

    pub fn free(&self, address: u64, bytes: usize) {
        let address = address as usize;
        let mut table = self.table();
        let Some(&size) = table.live.get(&address) else {
            drop(table);
            panic!("free of {address:#x}, where no allocation begins");
        };
        if size != bytes {
            drop(table);
            panic!("free of {bytes} bytes at {address:#x}, where an allocation of {size} begins");
        }
        table.live.remove(&address);
        table.live_bytes -= size;
        if self.shadow.is_some() {
            table.freed.insert(address, size);
            self.mark(address, size, 0);
            self.give_back(address, size);
        } else {
            table.reusable.entry((size + 2 * 256) / 256 * 256).or_default().push(address);
        }
    }

    /// Lets the system have the pages of a freed place; its addresses are not used again.
    fn give_back(&self, address: usize, size: usize) {
        const PAGE: usize = 1 << 16;
        let start = (address - self.base).next_multiple_of(PAGE);
        let end = (address - self.base + size) / PAGE * PAGE;
        if start < end {
            // SAFETY: nothing lives in these pages any more; they read as zeros from now on. A refusal does no harm.
            let _ = unsafe {
                self._maps[0].unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
            };
        }
    }

    /// Whether `bytes` bytes at `address` lie within one allocation.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let address = address as usize;
        let table = self.table();
        let found = table.live.range(..=address).next_back();
        found.is_some_and(|(start, size)| address - start <= *size && bytes <= size - (address - start))
    }

    /// The address in words, relative to the nearest allocation.
    pub fn describe(&self, address: u64) -> String {
        let address = address as usize;
        let table = self.table();
        let below = table.live.range(..=address).next_back();
        let above = table.live.range(address..).next();
        if let Some((start, size)) = below.filter(|(start, size)| address - **start < **size) {
            return format!("byte {} of an allocation of {size} bytes", address - start);
        }
        if let Some((start, size)) = table.freed.range(..=address).next_back()
            && address - start < *size
        {
            return format!("byte {} of an allocation of {size} bytes that was freed", address - start);
        }
        let behind = below.map(|(start, size)| (address - start - size, *size));
        let before = above.map(|(start, size)| (start - address, *size));
        match (behind, before) {
            (Some((distance, size)), other) if other.is_none_or(|(before, _)| distance < before) => {
                format!("{distance} bytes past the end of an allocation of {size} bytes")
            }
            (_, Some((distance, size))) => format!("{distance} bytes before an allocation of {size} bytes"),
            _ => format!("{address:#x}, and nothing is allocated"),
        }
    }

    /// Whether the address lies in the range, allocated or not.
    pub fn covers(&self, address: usize) -> bool {
        address.wrapping_sub(self.base) < RANGE
    }

    /// Checks an access within the range in checked mode, and remembers what it writes.
    pub fn access(&self, address: usize, bytes: usize, write: bool) -> Result<(), (usize, Fault)> {
        let Some(shadow) = self.shadow else { return Ok(()) };
        let offset = address - self.base;
        let all = u64::from_ne_bytes([INITIALISED; 8]);
        // SAFETY: the shadow is as long as the range; atomics of 4 and 8 bytes are at multiples of their size.
        let known = unsafe {
            match bytes {
                4 if offset.is_multiple_of(4) => {
                    AtomicU32::from_ptr(shadow.add(offset).cast()).load(Relaxed) == all as u32
                }
                8 if offset.is_multiple_of(8) => {
                    AtomicU64::from_ptr(shadow.add(offset).cast()).load(Relaxed) == all
                }
                16 if offset.is_multiple_of(8) => {
                    AtomicU64::from_ptr(shadow.add(offset).cast()).load(Relaxed) == all
                        && AtomicU64::from_ptr(shadow.add(offset + 8).cast()).load(Relaxed) == all
                }
                _ => false,
            }
        };
        if known { Ok(()) } else { self.access_bytes(address, bytes, write) }
    }

    fn access_bytes(&self, address: usize, bytes: usize, write: bool) -> Result<(), (usize, Fault)> {
        let Some(shadow) = self.shadow else { return Ok(()) };
        for byte in address..address.saturating_add(bytes) {
            let offset = byte - self.base;
            if offset >= RANGE {
                return Err((byte, Fault::OutOfBounds));
            }
            // SAFETY: the shadow is as long as the range.
            let state = unsafe { AtomicU8::from_ptr(shadow.add(offset)) };
            match state.load(Relaxed) {
                INITIALISED => {}
                ALLOCATED if write => state.store(INITIALISED, Relaxed),
                ALLOCATED => return Err((byte, Fault::Uninitialised)),
                _ => return Err((byte, Fault::OutOfBounds)),
            }
        }
        Ok(())
    }

    fn mark(&self, address: usize, bytes: usize, state: u8) {
        if let Some(shadow) = self.shadow {
            // SAFETY: the caller holds the table and has just taken or given up these bytes.
            unsafe { shadow.add(address - self.base).write_bytes(state, bytes) };
        }
    }
}
