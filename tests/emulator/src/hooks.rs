//! What device code calls at each access to memory in checked mode, and for atomics and asynchronous copies always.

use crate::block::{Block, Copy, current, fail};
use crate::memory::{DeviceMemory, Fault};
use crate::shared::Access;

/// No device memory is below this address.
const NULL_PAGE: usize = 1 << 16;

/// Checks an access to global memory.
pub fn check_global(memory: &DeviceMemory, address: usize, bytes: usize, write: bool) -> Result<(), String> {
    memory.access(address, bytes, write).map_err(|(byte, fault)| {
        let place = memory.describe(byte as u64);
        match fault {
            Fault::OutOfBounds => {
                let what = if write { "write" } else { "read" };
                format!("out of bounds: a {what} of {bytes} bytes of global memory, {place}")
            }
            Fault::Uninitialised => format!("uninitialised read of global memory, {place}"),
        }
    })
}

/// Checks an access that must be to shared memory.
///
/// # Safety
/// `block` is the current one.
pub unsafe fn check_shared(
    block: *mut Block<'static>,
    thread: usize,
    address: usize,
    bytes: usize,
    write: bool,
) -> Result<(), String> {
    // SAFETY: the caller vouches for the block.
    let block = unsafe { &mut *block };
    let kind = if write { Access::Write } else { Access::Read };
    block.shared.access(thread, address, bytes, kind)
}

/// Checks an access to any memory; the thread's stack and constants are the compiler's business.
fn check(block: &mut Block, address: usize, bytes: usize, kind: Access) -> Result<(), String> {
    let memory = block.grid.memory;
    if memory.covers(address) {
        check_global(memory, address, bytes, kind != Access::Read)
    } else if block.shared.covers(address) {
        block.shared.access(block.running, address, bytes, kind)
    } else if address < NULL_PAGE {
        Err(format!("out of bounds: an access of {bytes} bytes at the null pointer + {address}"))
    } else {
        Ok(())
    }
}

fn access(address: usize, bytes: usize, kind: Access, aligned: bool) {
    let block = current();
    if block.is_null() {
        return;
    }
    // SAFETY: the block is the current one, and the reference to it ends before `fail` suspends.
    unsafe {
        let mut result = check(&mut *block, address, bytes, kind);
        if aligned && !address.is_multiple_of(bytes) && result.is_ok() {
            result = Err(format!("misaligned: an access of {bytes} bytes at {address:#x}"));
        }
        if let Err(why) = result {
            fail(block, &why);
        }
    }
}

macro_rules! hooks {
    ($($bytes:literal $read:ident $write:ident $unaligned_read:ident $unaligned_write:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $read(address: usize) {
            access(address, $bytes, Access::Read, true);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $write(address: usize) {
            access(address, $bytes, Access::Write, true);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $unaligned_read(address: usize) {
            access(address, $bytes, Access::Read, false);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $unaligned_write(address: usize) {
            access(address, $bytes, Access::Write, false);
        }
    )*};
}
hooks!(
    1 __tsan_read1 __tsan_write1 __tsan_unaligned_read1 __tsan_unaligned_write1
    2 __tsan_read2 __tsan_write2 __tsan_unaligned_read2 __tsan_unaligned_write2
    4 __tsan_read4 __tsan_write4 __tsan_unaligned_read4 __tsan_unaligned_write4
    8 __tsan_read8 __tsan_write8 __tsan_unaligned_read8 __tsan_unaligned_write8
    16 __tsan_read16 __tsan_write16 __tsan_unaligned_read16 __tsan_unaligned_write16
);

#[unsafe(no_mangle)]
extern "C" fn __tsan_read_range(address: usize, bytes: usize) {
    access(address, bytes, Access::Read, false);
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_write_range(address: usize, bytes: usize) {
    access(address, bytes, Access::Write, false);
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}

/// `memcpy` of device code in checked mode; compilers call it for large structures too.
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    access(from as usize, bytes, Access::Read, false);
    access(to as usize, bytes, Access::Write, false);
    // SAFETY: both ranges have been checked, or are on the thread's stack.
    unsafe { to.copy_from(from, bytes) };
    to
}

/// `memset`, likewise.
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    access(to as usize, bytes, Access::Write, false);
    // SAFETY: the range has been checked, or is on the thread's stack.
    unsafe { to.write_bytes(byte as u8, bytes) };
    to
}

/// Checks an atomic operation on 4 bytes.
fn atomic(address: usize) {
    let block = current();
    // SAFETY: kernels run only while their block is the current one.
    if unsafe { (*block).grid.checked } {
        access(address, 4, Access::Atomic, true);
    }
}

/// `atomicAdd` for int and unsigned.
#[unsafe(no_mangle)]
extern "C" fn emulated_atomic_add(to: *mut u32, x: u32) -> u32 {
    atomic(to as usize);
    // SAFETY: what the kernel is given to write belongs to the caller of the launch; checked mode has checked it.
    unsafe { std::sync::atomic::AtomicU32::from_ptr(to).fetch_add(x, std::sync::atomic::Ordering::Relaxed) }
}

/// cp.async: the bytes come with the wait for their group, and until then there is nothing to read.
#[unsafe(no_mangle)]
extern "C" fn emulated_copy_async(shared: usize, global: usize, valid: i32) {
    let block = current();
    // SAFETY: the block is the current one, and references to it end before `fail` suspends.
    unsafe {
        if let Err(why) = begin_copy(&mut *block, shared, global, valid != 0) {
            fail(block, &why);
        }
    }
}

fn begin_copy(block: &mut Block, shared: usize, global: usize, valid: bool) -> Result<(), String> {
    if !shared.is_multiple_of(16) || (valid && !global.is_multiple_of(16)) {
        return Err("misaligned: cp.async needs multiples of 16 bytes".to_string());
    }
    let thread = block.running;
    block.shared.access(thread, shared, 16, Access::Write)?;
    if valid && block.grid.checked {
        check_global(block.grid.memory, global, 16, false)?;
    }
    block.shared.expect(shared - block.shared.address(), 16);
    let copies = block.copies();
    copies.waiting.push(Copy { shared, global, valid, group: copies.committed });
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn emulated_copy_commit() {
    // SAFETY: kernels run only while their block is the current one.
    let block = unsafe { &mut *current() };
    block.copies().committed += 1;
}

/// Waits for all but the latest `groups` groups of this thread.
#[unsafe(no_mangle)]
extern "C" fn emulated_copy_wait(groups: u32) {
    let current = current();
    // SAFETY: the block is the current one, and references to it end before `fail` suspends.
    unsafe {
        let block = &mut *current;
        let thread = block.running;
        let copies = block.copies();
        let arrived = copies.committed.saturating_sub(groups);
        let count = copies.waiting.iter().take_while(|copy| copy.group < arrived).count();
        for i in 0..count {
            let Copy { shared, global, valid, .. } = (*current).copies().waiting[i];
            if let Err(why) = (*current).shared.access(thread, shared, 16, Access::Write) {
                fail(current, &why);
            }
            let to = shared as *mut [u8; 16];
            *to = if valid { *(global as *const [u8; 16]) } else { [0; 16] };
        }
        (*current).copies().waiting.drain(..count);
    }
}
