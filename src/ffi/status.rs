//! How calls end, what is said about it, and callbacks.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_void};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, Once, PoisonError};

use crate::Error;

/// How a call ended. The numbers never change; later versions may add some.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum amdanet_status {
    /// It did what it says.
    Ok = 0,
    /// An argument cannot be used: a pointer is NULL or no longer valid, a number is outside of its range or names no
    /// constant, a stride or length is too small, a size overflows. amdanet_last_error names the argument and its value.
    InvalidArgument = 1,
    /// A file cannot be opened or read.
    Io = 2,
    /// A file, or the memory that is said to hold one, is no checkpoint of a network, or is damaged.
    BadFile = 3,
    /// This library, or this machine, cannot do what was asked for.
    Unsupported = 4,
    /// There is not enough memory, or more would be needed than amdanet_session_params.memory_limit.
    OutOfMemory = 5,
    /// The session is at work for another call, or has as many frames in its queue as it takes. Nothing was changed.
    Busy = 6,
    /// The frame was not finished in time. It is still being computed.
    Timeout = 7,
    /// A progress callback asked to stop, or the session was freed.
    Cancelled = 8,
    /// The library has a defect. Please report it with amdanet_last_error.
    Internal = 9,
    /// A CUDA device reported an error, such as too little memory. amdanet_last_error has its words.
    Device = 10,
}

use amdanet_status as Status;

/// Why a call did not do what it says.
#[derive(Debug)]
pub struct Failure {
    pub status: Status,
    pub message: String,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// An argument that cannot be used: its name, then its value and what it should be.
    pub fn argument(name: impl std::fmt::Display, what: impl std::fmt::Display) -> Self {
        Self::new(Status::InvalidArgument, format!("{name}: {what}"))
    }

    /// A number that names none of the constants of an enumeration.
    pub fn no_constant(name: impl std::fmt::Display, value: u32, enumeration: &str) -> Self {
        Self::argument(name, format!("{value} is no {enumeration}"))
    }

    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Self::new(Status::Internal, format!("a defect of the library: {text}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => {
                Status::OutOfMemory
            }
            Error::Memory { .. } => Status::OutOfMemory,
            Error::Io { .. } => Status::Io,
            Error::File { .. } => Status::BadFile,
            Error::Cuda { .. } => Status::Device,
            Error::Config(_) => Status::InvalidArgument,
            Error::Shape { .. } | Error::NoBackward { .. } => Status::Internal,
        };
        Self::new(status, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
    /// How many callbacks of the caller are on the stack of this thread.
    static CALLBACKS: Cell<usize> = const { Cell::new(0) };
}

/// Runs an entry of the interface: no panic leaves it, and its failure becomes the thread's last error.
pub fn guard(entry: impl FnOnce() -> Result<()>) -> Status {
    // The usual hook writes to standard error, which belongs to the program (and in tests to the tests).
    static QUIET: Once = Once::new();
    if !cfg!(test) {
        QUIET.call_once(|| panic::set_hook(Box::new(|info| log(Level::Error, || info.to_string()))));
    }
    let done = panic::catch_unwind(AssertUnwindSafe(entry));
    match done.unwrap_or_else(|payload| Err(Failure::panicked(&*payload))) {
        Ok(()) => Status::Ok,
        Err(Failure { status, message }) => {
            // A zero would end the message early in C.
            let message = message.replace('\0', "\\0");
            // The thread may be ending, and have no place for it any more.
            let _ = LAST.try_with(|last| *last.borrow_mut() = message);
            status
        }
    }
}

/// As much of a text as fits into so many bytes, cut between characters.
pub fn beginning(text: &str, most: usize) -> &str {
    let mut ends = (0..=most.min(text.len())).rev();
    &text[..ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0)]
}

/// The message of the last call in this thread that returned another status than AMDANET_STATUS_OK: one line of UTF-8 that
/// names the argument or file, its value, and where possible the remedy. Calls that succeed leave it as it is; it is empty
/// before the first failure. What failed on another thread, in amdanet_session_submit, is this thread's once
/// amdanet_session_wait has returned it.
///
/// Writes at most `length` bytes to `buffer`, the last of them a 0; a longer message is cut off between characters.
/// `buffer` may be NULL, then nothing is written.
///
/// Returns the bytes of the whole message, without the 0: allocate one more, and call again, if that is not below `length`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn amdanet_last_error(buffer: *mut c_char, length: usize) -> usize {
    let message = LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
    if !buffer.is_null() && length > 0 {
        let end = beginning(&message, length - 1).len();
        // SAFETY: the caller says that `length` bytes at `buffer` may be written, and there are at most that many.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), buffer.cast(), end);
            *buffer.add(end) = 0;
        }
    }
    message.len()
}

/// The name of a status, such as "invalid argument"; "unknown status" for any other number. Never NULL; it lives as long as
/// the program. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn amdanet_status_name(status: i32) -> *const c_char {
    let names = [
        c"ok",
        c"invalid argument",
        c"input or output failed",
        c"bad file",
        c"unsupported",
        c"out of memory",
        c"busy",
        c"timeout",
        c"cancelled",
        c"internal error",
        c"device error",
    ];
    usize::try_from(status).ok().and_then(|i| names.get(i)).unwrap_or(&c"unknown status").as_ptr()
}

/// How much a message matters.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub enum amdanet_log_level {
    /// A defect of the library.
    Error = 0,
    /// Something is not as good as it could be.
    Warning = 1,
    /// What was loaded, and what computes.
    Info = 2,
    /// What was planned for a size of pictures.
    Debug = 3,
}

use amdanet_log_level as Level;

/// Takes a message: `user` as it was given, an amdanet_log_level, and one line of UTF-8 that is valid during the call. It may
/// be called on any thread, by several at once, and must not throw or jump out.
pub type amdanet_log_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>;

/// Is told how much is done: `done` of `total` steps. Returns 0 to go on, anything else to stop the call with
/// AMDANET_STATUS_CANCELLED. It may be called on a thread of the library, never by two at once for one call, and must not
/// throw or jump out. Calls that it makes for the same session return AMDANET_STATUS_BUSY, but
/// for amdanet_session_submit, and amdanet_session_free, which returns before the frame is done. It must not wait for a thread
/// that is in a call of this library, unless the session has threads of its own.
pub type amdanet_progress_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> i32>;

/// A callback with the pointer to hand it.
#[derive(Clone, Copy)]
struct Log {
    callback: amdanet_log_callback,
    user: *mut c_void,
    most: u32,
}

// SAFETY: the header says that the callback is called on any thread; the pointer is only handed to it.
unsafe impl Send for Log {}

static LOG: Mutex<Log> = Mutex::new(Log { callback: None, user: std::ptr::null_mut(), most: 0 });

/// Sends the library's messages to `callback`, for the whole process. Without one, which is how it begins, they are dropped:
/// the library writes nothing to standard output or standard error.
///
/// `callback`: NULL for none. `user`: handed to it, never used otherwise; must stay valid until the callback is replaced and
/// the calls that had begun by then are over. `most`: an amdanet_log_level; messages that matter less are dropped.
///
/// Any thread may call it. Errors: AMDANET_STATUS_INVALID_ARGUMENT when `most` is no level.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn amdanet_set_log(
    callback: amdanet_log_callback,
    user: *mut c_void,
    most: u32,
) -> amdanet_status {
    guard(|| {
        if most > Level::Debug as u32 {
            return Err(Failure::argument("most", format!("{most} is no amdanet_log_level: 0 to 3")));
        }
        *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Log { callback, user, most };
        Ok(())
    })
}

/// Sends a message to the caller's log, if it wants it.
pub fn log(level: Level, message: impl FnOnce() -> String) {
    let Log { callback, user, most } = *LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(callback) = callback.filter(|_| level as u32 <= most) else { return };
    let line = message().split_whitespace().collect::<Vec<_>>().join(" ").replace('\0', "\\0");
    let line = CString::new(line).unwrap_or_default();
    // SAFETY: the callback is what the header asks for, and the line lives during the call.
    in_callback(|| unsafe { callback(user, level as u32, line.as_ptr()) });
}

/// Whether a callback of the caller is on the stack of this thread.
pub fn is_in_callback() -> bool {
    CALLBACKS.try_with(Cell::get).unwrap_or(0) > 0
}

fn in_callback<R>(call: impl FnOnce() -> R) -> R {
    let count = |by: isize| {
        let _ = CALLBACKS.try_with(|n| n.set(n.get().wrapping_add_signed(by)));
    };
    count(1);
    let result = call();
    count(-1);
    result
}

/// A progress callback with the pointer to hand it.
#[derive(Clone, Copy)]
pub struct Progress {
    pub callback: amdanet_progress_callback,
    pub user: *mut c_void,
}

// SAFETY: the header says that the callback is called on threads of the library; the pointer is only handed to it.
unsafe impl Send for Progress {}
// SAFETY: as above.
unsafe impl Sync for Progress {}

impl Progress {
    /// Whether anybody wants to know.
    pub fn is_wanted(self) -> bool {
        self.callback.is_some()
    }

    /// Says how much is done.
    ///
    /// # Errors
    /// When the caller wants no more.
    pub fn say(self, done: usize, total: usize) -> Result<()> {
        let Some(callback) = self.callback else { return Ok(()) };
        // SAFETY: the callback is what the header asks for.
        match in_callback(|| unsafe { callback(self.user, done as u64, total as u64) }) {
            0 => Ok(()),
            answer => Err(Failure::new(
                Status::Cancelled,
                format!("the progress callback returned {answer} after {done} of {total} steps"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        let mut buffer = [0u8; 200];
        // SAFETY: the buffer has that length.
        let length = unsafe { amdanet_last_error(buffer.as_mut_ptr().cast(), buffer.len()) };
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        let index = std::hint::black_box(7);
        assert_eq!(guard(|| panic!("number {index}")), Status::Internal);
        assert_eq!(last(), "a defect of the library: number 7");
        let status = guard(|| rayon::scope(|_| -> Result<()> { panic!("on another thread") }));
        assert_eq!((status, last()), (Status::Internal, "a defect of the library: on another thread".into()));
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let failing = || Err(Failure::argument("π", "ж\0"));
        assert_eq!(guard(failing), Status::InvalidArgument);
        assert_eq!(last(), "π: ж\\0");
        for (length, want) in [(1, ""), (2, ""), (3, "π"), (6, "π: "), (7, "π: ж"), (9, "π: ж\\0")] {
            let mut buffer = [0xffu8; 16];
            // SAFETY: the buffer is longer than that.
            assert_eq!(unsafe { amdanet_last_error(buffer.as_mut_ptr().cast(), length) }, 8);
            assert_eq!(&buffer[..=want.len()], [want.as_bytes(), &[0]].concat(), "{length}");
            assert!(buffer[length..].iter().all(|&b| b == 0xff));
        }
    }
}
