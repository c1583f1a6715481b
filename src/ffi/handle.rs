//! Pointers to objects of the library, which the caller hands back.

use std::collections::HashSet;
use std::ffi::CStr;
use std::ffi::c_char;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::status::{Failure, Result};

/// The objects that live, by the complement of their address and their type: so a pointer that was freed, or is to
/// something else, is an error and not a crash. The complement, because a leak checker must not find the address here.
static LIVE: LazyLock<Mutex<HashSet<(usize, &'static str)>>> = LazyLock::new(Mutex::default);

fn live() -> MutexGuard<'static, HashSet<(usize, &'static str)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What C sees as a pointer: a box around a shared object.
pub trait Handle: Sized {
    /// What it is called in messages.
    const NAME: &'static str;
    /// What it shares.
    type Inner;
    /// Puts it in.
    fn wrap(inner: Arc<Self::Inner>) -> Self;
    /// Looks in.
    fn inner(&self) -> &Arc<Self::Inner>;
}

/// Gives an object to the caller, in a place that was checked by [`place`].
///
/// # Safety
/// `to` may be written.
pub unsafe fn give<H: Handle>(inner: H::Inner, to: *mut *mut H) {
    let pointer = Box::into_raw(Box::new(H::wrap(Arc::new(inner))));
    live().insert((!(pointer as usize), H::NAME));
    // SAFETY: as above.
    unsafe { to.write(pointer) };
}

/// Checks the place where the caller wants an object, and makes it NULL.
///
/// # Safety
/// `to` is NULL or may be written.
pub unsafe fn place<H>(to: *mut *mut H, argument: &str) -> Result<()> {
    if to.is_null() {
        return Err(Failure::argument(argument, "is NULL"));
    }
    // SAFETY: as above.
    unsafe { to.write(std::ptr::null_mut()) };
    Ok(())
}

/// The object of a pointer. It stays while it is used, even if another thread frees the pointer.
pub fn get<H: Handle>(pointer: *const H) -> Result<Arc<H::Inner>> {
    let name = H::NAME;
    if pointer.is_null() {
        return Err(Failure::argument(name, "is NULL"));
    }
    let live = live();
    if !live.contains(&(!(pointer as usize), name)) {
        let what = format!("{pointer:p} is no {name} of this library, or was freed");
        return Err(Failure::argument(name, what));
    }
    // SAFETY: the object lives, and cannot be freed while the set is locked.
    Ok(unsafe { (*pointer).inner().clone() })
}

/// Takes an object back. NULL, and what is no object, are nothing.
pub fn take<H: Handle>(pointer: *mut H) -> Option<Arc<H::Inner>> {
    if !live().remove(&(!(pointer as usize), H::NAME)) {
        return None;
    }
    // SAFETY: it was made by `give`, and was in the set, so nobody has taken it yet.
    let handle = unsafe { Box::from_raw(pointer) };
    Some(handle.inner().clone())
}

/// A string of the caller.
///
/// # Safety
/// `pointer` is NULL or points at a string that ends with a 0.
pub unsafe fn string<'a>(pointer: *const c_char, argument: &str) -> Result<&'a CStr> {
    if pointer.is_null() {
        return Err(Failure::argument(argument, "is NULL"));
    }
    // SAFETY: as above.
    Ok(unsafe { CStr::from_ptr(pointer) })
}
