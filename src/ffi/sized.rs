//! Structures that begin with their size, so that callers with an older or a newer header work.

use std::mem::MaybeUninit;

use super::status::{Failure, Result};

/// A structure of the interface.
///
/// # Safety
/// `repr(C)`, begins with `struct_size: usize`, and any bytes are a value of it; all zeros are the default.
pub unsafe trait Struct: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// Far above any structure here; a size beyond it was never set.
const MOST: usize = 4096;

/// All bytes zero but the size: the defaults.
pub fn zeroed<T: Struct>() -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the structure begins with a usize, and any bytes are a value.
    unsafe {
        value.as_mut_ptr().cast::<usize>().write(size_of::<T>());
        value.assume_init()
    }
}

fn check_size<T: Struct>(size: usize) -> Result<()> {
    // A multiple of a pointer's size, so that none is ever cut in two.
    if !(size_of::<usize>()..=MOST).contains(&size) || !size.is_multiple_of(size_of::<usize>()) {
        let name = T::NAME;
        let what = format!("{size} bytes: set it to sizeof({name}), or call the structure's init function");
        return Err(Failure::argument(format!("{name}.struct_size"), what));
    }
    Ok(())
}

/// The size that the caller set, or an error that names the argument.
unsafe fn size_at<T: Struct>(pointer: *const T, argument: &str) -> Result<usize> {
    if pointer.is_null() {
        return Err(Failure::argument(argument, "is NULL"));
    }
    // SAFETY: the caller says that a structure is there, which begins with its size.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    Ok(size)
}

/// A copy of the caller's structure. What an older one lacks is zero; what a newer one has more must be.
///
/// # Safety
/// `pointer` is NULL, or points at as many bytes as it says.
pub unsafe fn read<T: Struct>(pointer: *const T, argument: &str) -> Result<T> {
    // SAFETY: as above.
    let size = unsafe { size_at(pointer, argument)? };
    let mut value = zeroed::<T>();
    let known = size.min(size_of::<T>());
    // SAFETY: both have that many bytes, and any bytes are a value.
    let unknown = unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
        std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known)
    };
    if unknown.iter().any(|&byte| byte != 0) {
        let what = format!(
            "uses fields beyond the {} bytes that this library knows: the program needs a newer library",
            size_of::<T>()
        );
        return Err(Failure::new(super::amdanet_status::Unsupported, format!("{argument}: {what}")));
    }
    Ok(value)
}

/// A copy of the caller's structure, or the defaults for NULL.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_or_default<T: Struct>(pointer: *const T, argument: &str) -> Result<T> {
    if pointer.is_null() {
        return Ok(zeroed());
    }
    // SAFETY: as above.
    unsafe { read(pointer, argument) }
}

/// Fills the caller's structure as far as it reaches; what a newer one has more becomes zero. Its size stays.
///
/// # Safety
/// `pointer` is NULL, or points at as many bytes as it says, which may be written.
pub unsafe fn write<T: Struct>(pointer: *mut T, argument: &str, value: &T) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        let size = size_at(pointer, argument)?;
        fill(pointer, size, value);
    }
    Ok(())
}

/// Fills `size` bytes with the defaults, the size among them.
///
/// # Safety
/// `pointer` is NULL, or `size` bytes there may be written.
pub unsafe fn init<T: Struct>(pointer: *mut T, size: usize) -> Result<()> {
    if pointer.is_null() {
        return Err(Failure::argument(T::NAME, "is NULL"));
    }
    check_size::<T>(size)?;
    // SAFETY: as above.
    unsafe { fill(pointer, size, &zeroed()) };
    Ok(())
}

/// # Safety
/// `size` bytes at `pointer` may be written, and begin with their size.
unsafe fn fill<T: Struct>(pointer: *mut T, size: usize, value: &T) {
    let known = size.min(size_of::<T>());
    // SAFETY: both have that many bytes; the caller's begin with a usize.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const *value).cast::<u8>(), pointer.cast::<u8>(), known);
        pointer.cast::<u8>().add(known).write_bytes(0, size - known);
        pointer.cast::<usize>().write_unaligned(size);
    }
}
