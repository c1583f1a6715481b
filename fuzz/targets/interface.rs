//! The C interface: any calls in any order, at times from two threads, with arguments that a program in C could pass.
//! Pointers are NULL, freed, or to as much memory as the call says; what lies around that must stay as it was.

use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::{LazyLock, Mutex, PoisonError};

use amdanet::checkpoint;
use amdanet::data::ClassSet;
use amdanet::ffi::*;
use amdanet::model::{Amdanet, Encoder, ModelConfig};
use arbitrary::{Arbitrary, Result, Unstructured};

use super::scratch;

const MOST_CALLS: usize = 24;
/// Bytes of the largest picture or buffer that is made.
const MOST_BYTES: usize = 1 << 16;
/// Sessions get no more, so that no call takes long.
const MOST_MEMORY: u64 = 32 << 20;
const GUARD: u8 = 0xA5;

/// A network of a few numbers: its file and the file's bytes.
static NETWORK: LazyLock<(CString, Vec<u8>)> = LazyLock::new(|| {
    let config = ModelConfig {
        dims: [4; 4],
        heads: [1, 1, 2, 4],
        depths: [1; 4],
        mlp_ratio: 1,
        decoder_dim: 4,
        fusion_dim: 4,
        ..ModelConfig::new(Encoder::Nano, Default::default(), 3)
    };
    let mut model = Amdanet::new(config).expect("a network");
    model.params.initialise(1);
    let path = scratch("network.safetensors");
    checkpoint::save(&path, &model, &ClassSet::unnamed(3).expect("classes")).expect("saving a network");
    let bytes = std::fs::read(&path).expect("reading what was saved");
    (CString::new(path.into_os_string().into_encoded_bytes()).expect("a path"), bytes)
});

pub fn run(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    let world = World::default();
    // What a thread does not find in its bytes it does not do.
    if mode % 4 == 1 {
        let (one, other) = bytes.split_at(bytes.len() / 2);
        std::thread::scope(|scope| {
            let threads =
                [one, other].map(|bytes| scope.spawn(|| world.calls(&mut Unstructured::new(bytes))));
            // A scope's end does not wait until the system's threads have gone. LeakSanitizer, which looks after that,
            // does not see into one whose number an earlier thread had: to it, what only that one holds has leaked.
            for thread in threads {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
    } else {
        let _ = world.calls(&mut Unstructured::new(bytes));
    }
    world.end();
}

/// Memory with guards on both sides.
struct Memory(Vec<u8>);

const AROUND: usize = 64;

impl Memory {
    /// `shift` makes it begin at any address.
    fn new(length: usize, shift: usize, fill: u8) -> Self {
        let mut bytes = vec![GUARD; 2 * AROUND + length];
        bytes[AROUND - shift..][..length].fill(fill);
        Self(bytes)
    }

    fn at(&mut self, shift: usize) -> *mut c_void {
        self.0[AROUND - shift..].as_mut_ptr().cast()
    }

    fn is_whole(&self, length: usize, shift: usize) -> bool {
        let (before, after) = (&self.0[..AROUND - shift], &self.0[AROUND - shift + length..]);
        before.iter().chain(after).all(|&byte| byte == GUARD)
    }
}

/// A picture or buffer that was handed to the library, which may use it until the end.
struct Lent {
    memory: Memory,
    length: usize,
    shift: usize,
}

/// Pointers as numbers, because they go from thread to thread; freed ones stay.
#[derive(Default)]
struct World {
    models: Mutex<Vec<usize>>,
    sessions: Mutex<Vec<usize>>,
    tickets: Mutex<Vec<u64>>,
    lent: Mutex<Vec<Lent>>,
}

fn push<T>(list: &Mutex<Vec<T>>, value: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(value);
}

fn pick<T: Copy + Default>(list: &Mutex<Vec<T>>, u: &mut Unstructured) -> Result<T> {
    let list = list.lock().unwrap_or_else(PoisonError::into_inner);
    if list.is_empty() || u.ratio(1, 32)? { Ok(T::default()) } else { Ok(*u.choose(&list)?) }
}

/// A defect of the library is what is looked for. Its own panic was caught, so this one says it.
fn checked(status: amdanet_status) -> amdanet_status {
    if status == amdanet_status::Internal {
        let mut text = vec![0u8; 4096];
        // SAFETY: so many bytes are there.
        unsafe { amdanet_last_error(text.as_mut_ptr().cast(), text.len()) };
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(0);
        fail(&String::from_utf8_lossy(&text[..end]));
    }
    status
}

/// The library keeps panics quiet, so the message is written first.
fn fail(what: &str) -> ! {
    eprintln!("{what}");
    panic!("{what}");
}

/// A structure of the caller in memory of its own, of a size that it may not have.
struct Given {
    words: Vec<u64>,
    size: usize,
}

const GIVEN: usize = 8192;

impl Given {
    fn new<T: Copy>(value: &T, size: usize) -> Self {
        let mut words = vec![0u64; GIVEN / 8];
        // SAFETY: the memory is larger than any structure.
        unsafe {
            words.as_mut_ptr().cast::<T>().write(*value);
            words.as_mut_ptr().cast::<usize>().write(size);
        }
        Self { words, size }
    }

    /// One for the library to fill.
    fn empty(size: usize) -> Self {
        let mut words = vec![u64::from_ne_bytes([GUARD; 8]); GIVEN / 8];
        words[0] = size as u64;
        Self { words, size }
    }

    fn at<T>(&mut self) -> *mut T {
        self.words.as_mut_ptr().cast()
    }

    /// Nothing behind the size that the caller named was written.
    fn is_whole(&self) -> bool {
        let first = if self.size > GIVEN { 1 } else { self.size.div_ceil(8).max(1) };
        self.words[first..].iter().all(|&word| word == u64::from_ne_bytes([GUARD; 8]))
    }
}

fn size_of<T>(u: &mut Unstructured) -> Result<usize> {
    let right = std::mem::size_of::<T>();
    Ok(match u.int_in_range(0..=15)? {
        0 => u.int_in_range(0..=GIVEN)?,
        1 => u.int_in_range(0..=right / 8)? * 8,
        2 => right + 8,
        3 => usize::arbitrary(u)? | (GIVEN << 1),
        _ => right,
    })
}

/// Mostly one of the constants that there are.
fn constant(u: &mut Unstructured, most: u32) -> Result<u32> {
    if u.ratio(1, 16)? { u32::arbitrary(u) } else { u.int_in_range(0..=most) }
}

/// Mostly 0.
fn rarely(u: &mut Unstructured) -> Result<u32> {
    if u.ratio(1, 16)? { u32::arbitrary(u) } else { Ok(0) }
}

fn side(u: &mut Unstructured) -> Result<u32> {
    if u.ratio(1, 8)? { u32::arbitrary(u) } else { u.int_in_range(30..=50) }
}

unsafe extern "C" fn progress(user: *mut c_void, done: u64, total: u64) -> i32 {
    if done > total {
        fail("more is done than there is");
    }
    i32::from(user as usize as u64 == done + 1)
}

unsafe extern "C" fn heard(_: *mut c_void, level: u32, _: *const c_char) {
    if level > 3 {
        fail("a level that there is not");
    }
}

fn callback(u: &mut Unstructured) -> Result<(amdanet_progress_callback, *mut c_void)> {
    let user = u.int_in_range(0..=40)? as usize;
    Ok((if u.ratio(1, 4)? { Some(progress) } else { None }, user as *mut c_void))
}

impl World {
    fn calls(&self, u: &mut Unstructured) -> Result<()> {
        for _ in 0..MOST_CALLS {
            if u.is_empty() {
                break;
            }
            self.call(u)?;
        }
        Ok(())
    }

    fn call(&self, u: &mut Unstructured) -> Result<()> {
        match u.int_in_range(0..=15)? {
            0 => self.load(u),
            1 => self.create(u),
            2..=4 => self.frame(u, true),
            5..=7 => self.frame(u, false),
            8 | 9 => self.wait(u),
            10 => self.free(u),
            11 => self.ask(u),
            12 => defaults(u),
            13 => last_error(u),
            14 => library(u),
            _ => {
                // The usual beginning.
                self.load_whole();
                self.create(u)
            }
        }
    }

    fn load_whole(&self) {
        let bytes = &NETWORK.1;
        let mut model = null_mut();
        // SAFETY: so many bytes are there.
        let status =
            unsafe { amdanet_model_load_memory(bytes.as_ptr().cast(), bytes.len(), null(), &mut model) };
        checked(status);
        if model.is_null() {
            fail("a whole network was not loaded");
        }
        push(&self.models, model as usize);
    }

    fn load(&self, u: &mut Unstructured) -> Result<()> {
        let (progress, progress_user) = callback(u)?;
        let size = size_of::<amdanet_load_params>(u)?;
        let bn_eps = if u.ratio(1, 4)? { f32::arbitrary(u)? } else { 0.0 };
        let reserved = rarely(u)?;
        let params = amdanet_load_params { struct_size: size, progress, progress_user, bn_eps, reserved };
        let mut params = Given::new(&params, size);
        let params: *mut amdanet_load_params = if u.ratio(1, 4)? { null_mut() } else { params.at() };
        let mut model = null_mut();
        let place: *mut *mut amdanet_model = if u.ratio(1, 32)? { null_mut() } else { &mut model };
        let (path, bytes) = &*NETWORK;
        let mut bytes = bytes.clone();
        if u.ratio(1, 4)? {
            bytes.truncate(u.int_in_range(0..=bytes.len())?);
        }
        if u.ratio(1, 4)? && !bytes.is_empty() {
            let at = u.choose_index(bytes.len())?;
            bytes[at] = u8::arbitrary(u)?;
        }
        // SAFETY: pointers are NULL, or what the calls say.
        let status = unsafe {
            match u.int_in_range(0..=7)? {
                0 => amdanet_model_load(null(), params, place),
                1 => amdanet_model_load(c"/nowhere/network".as_ptr(), params, place),
                2 => amdanet_model_load(c"/".as_ptr(), params, place),
                3 => amdanet_model_load(path.as_ptr(), params, place),
                4 => amdanet_model_load_memory(null(), bytes.len(), params, place),
                _ => amdanet_model_load_memory(bytes.as_ptr().cast(), bytes.len(), params, place),
            }
        };
        if (checked(status) == amdanet_status::Ok) == model.is_null() {
            fail("a model and no success, or the other way round");
        }
        push(&self.models, model as usize);
        Ok(())
    }

    fn create(&self, u: &mut Unstructured) -> Result<()> {
        let model = pick(&self.models, u)? as *const amdanet_model;
        let (progress, progress_user) = callback(u)?;
        let size = size_of::<amdanet_session_params>(u)?;
        let fixed = u.ratio(1, 4)?;
        let params = amdanet_session_params {
            struct_size: size,
            progress,
            progress_user,
            memory_limit: if u.ratio(1, 8)? { u.int_in_range(1..=MOST_MEMORY)? } else { MOST_MEMORY },
            device: constant(u, 1)?,
            ordinal: rarely(u)?,
            precision: rarely(u)?,
            threads: *u.choose(&[1, 2, 3, 0, 1025, u32::MAX])?,
            width: if fixed { side(u)? } else { rarely(u)? },
            height: if fixed { side(u)? } else { rarely(u)? },
            queue: if u.ratio(1, 8)? { constant(u, 64)? } else { u.int_in_range(0..=3)? },
            timing: constant(u, 1)?,
        };
        let mut params = Given::new(&params, size);
        // Fields that an older structure lacks would lift the limit.
        let cut = size < std::mem::size_of::<amdanet_session_params>();
        let params: *mut amdanet_session_params = if cut && size >= 8 { null_mut() } else { params.at() };
        let mut session = null_mut();
        let place: *mut *mut amdanet_session = if u.ratio(1, 32)? { null_mut() } else { &mut session };
        // SAFETY: pointers are NULL, freed, or what the call says.
        let status = unsafe { amdanet_session_create(model, params, place) };
        if (checked(status) == amdanet_status::Ok) == session.is_null() {
            fail("a session and no success, or the other way round");
        }
        push(&self.sessions, session as usize);
        Ok(())
    }

    /// Memory for `needed` bytes, mostly: its address, its length, and the bytes from row to row.
    fn lend(
        &self,
        u: &mut Unstructured,
        row: usize,
        height: u32,
        fill: u8,
    ) -> Result<(*mut c_void, usize, usize)> {
        let stride = match u.int_in_range(0..=15)? {
            0 => usize::arbitrary(u)?,
            1..=3 => row.saturating_add(u.int_in_range(0..=9)?),
            4 => row.saturating_sub(1),
            _ => 0,
        };
        let step = if stride == 0 { row } else { stride };
        let needed = (height as usize).saturating_sub(1).saturating_mul(step).saturating_add(row);
        let length = match u.int_in_range(0..=15)? {
            0 => u.int_in_range(0..=MOST_BYTES)?,
            1 => needed.saturating_sub(1).min(MOST_BYTES),
            _ => needed.min(MOST_BYTES),
        };
        let shift = u.int_in_range(0..=8)?;
        let mut memory = Memory::new(length, shift, fill);
        let data = memory.at(shift);
        push(&self.lent, Lent { memory, length, shift });
        Ok((data, length, stride))
    }

    fn picture(&self, u: &mut Unstructured, width: u32, height: u32) -> Result<amdanet_picture> {
        let (channels, kind) = (constant(u, 4)?, constant(u, 2)?);
        let numbers = [3, 3, 4, 4, 1].get(channels as usize).copied().unwrap_or(3);
        let bytes = [1, 2, 4].get(kind as usize).copied().unwrap_or(1);
        let row = (width as usize).saturating_mul(numbers * bytes);
        // As floats: 0, 0.009, and what is none of a picture's.
        let fill = *u.choose(&[0, 0x3c, 0xff])?;
        let (data, length, stride) = self.lend(u, row, height, fill)?;
        let scaled = u.ratio(1, 8)?;
        Ok(amdanet_picture {
            data: if u.ratio(1, 32)? { null() } else { data },
            length,
            stride,
            channels,
            r#type: kind,
            memory: rarely(u)?,
            reserved: rarely(u)?,
            black: if scaled { f32::arbitrary(u)? } else { 0.0 },
            white: if scaled { f32::arbitrary(u)? } else { 0.0 },
        })
    }

    fn buffer(&self, u: &mut Unstructured, row: usize, height: u32) -> Result<amdanet_buffer> {
        let wanted = u.ratio(2, 3)?;
        let (data, length, stride) = if wanted { self.lend(u, row, height, 0)? } else { (null_mut(), 0, 0) };
        Ok(amdanet_buffer { data, length, stride, memory: rarely(u)?, reserved: rarely(u)? })
    }

    fn frame(&self, u: &mut Unstructured, at_once: bool) -> Result<()> {
        let session = pick(&self.sessions, u)? as *mut amdanet_session;
        let (width, height) = (side(u)?, side(u)?);
        let size = size_of::<amdanet_frame>(u)?;
        let visible = self.picture(u, width, height)?;
        let infrared = self.picture(u, width, height)?;
        let (fused_channels, fused_type) = (constant(u, 4)?, constant(u, 2)?);
        let pixel = [3, 3, 4, 4].get(fused_channels as usize).copied().unwrap_or(3)
            * [1, 2, 4].get(fused_type as usize).copied().unwrap_or(1);
        let width_bytes = |pixel: usize| (width as usize).saturating_mul(pixel);
        let mut fused = self.buffer(u, width_bytes(pixel), height)?;
        if u.ratio(1, 16)? && visible.length > 0 {
            // The result over the picture.
            (fused.data, fused.length, fused.stride) =
                (visible.data.cast_mut(), visible.length, visible.stride);
        }
        let frame = amdanet_frame {
            struct_size: size,
            width,
            height,
            visible,
            infrared,
            fused,
            labels: self.buffer(u, width_bytes(1), height)?,
            probabilities: self.buffer(u, width_bytes(3 * 4), height)?,
            fused_channels,
            fused_type,
            stream: rarely(u)? as usize as *mut c_void,
        };
        let mut given = Given::new(&frame, size);
        let frame: *mut amdanet_frame = if u.ratio(1, 32)? { null_mut() } else { given.at() };
        let mut ticket = 0;
        let place: *mut u64 = if u.ratio(1, 32)? { null_mut() } else { &mut ticket };
        // SAFETY: pointers are NULL, freed, or what the calls say; what the frame points at stays until the end.
        let status = unsafe {
            if at_once {
                amdanet_session_run(session, frame)
            } else {
                amdanet_session_submit(session, frame, place)
            }
        };
        if checked(status) == amdanet_status::Ok && !at_once {
            if ticket == 0 {
                fail("a frame was submitted and has no number");
            }
            push(&self.tickets, ticket);
        }
        Ok(())
    }

    fn wait(&self, u: &mut Unstructured) -> Result<()> {
        let session = pick(&self.sessions, u)? as *mut amdanet_session;
        let ticket = if u.ratio(1, 16)? { u64::arbitrary(u)? } else { pick(&self.tickets, u)? };
        let milliseconds = *u.choose(&[0, 1, AMDANET_WAIT_FOREVER, AMDANET_WAIT_FOREVER - 1])?;
        // SAFETY: the pointer is NULL, freed, or a session.
        checked(unsafe { amdanet_session_wait(session, ticket, milliseconds) });
        Ok(())
    }

    fn free(&self, u: &mut Unstructured) -> Result<()> {
        let (models, sessions) = (&self.models, &self.sessions);
        // SAFETY: pointers are NULL, freed, or an object of either kind.
        unsafe {
            match u.int_in_range(0..=5)? {
                0 => amdanet_model_free(pick(sessions, u)? as *mut amdanet_model),
                1 => amdanet_session_free(pick(models, u)? as *mut amdanet_session),
                2 | 3 => amdanet_model_free(pick(models, u)? as *mut amdanet_model),
                _ => amdanet_session_free(pick(sessions, u)? as *mut amdanet_session),
            }
        }
        Ok(())
    }

    fn ask(&self, u: &mut Unstructured) -> Result<()> {
        let model = pick(&self.models, u)? as *mut amdanet_model;
        let session = pick(&self.sessions, u)? as *mut amdanet_session;
        let index = constant(u, 4)?;
        let which = u.int_in_range(0..=4)?;
        let size = match which {
            0 => size_of::<amdanet_model_info>(u)?,
            1 => size_of::<amdanet_class>(u)?,
            2 => size_of::<amdanet_session_info>(u)?,
            3 => size_of::<amdanet_step>(u)?,
            _ => size_of::<amdanet_device>(u)?,
        };
        let mut given = Given::empty(size);
        let no = u.ratio(1, 32)?;
        let at = if no { null_mut() } else { given.at::<c_void>() };
        // SAFETY: pointers are NULL, freed, or what the calls say.
        checked(unsafe {
            match which {
                0 => amdanet_model_get_info(model, at.cast()),
                1 => amdanet_model_get_class(model, index, at.cast()),
                2 => amdanet_session_get_info(session, at.cast()),
                3 => amdanet_session_get_step(session, index, at.cast()),
                _ => amdanet_get_device(index, at.cast()),
            }
        });
        if !given.is_whole() {
            fail("more of a structure was written than there is");
        }
        Ok(())
    }

    /// Frees everything and looks at the guards.
    fn end(self) {
        let list = |list: Mutex<Vec<usize>>| list.into_inner().unwrap_or_else(PoisonError::into_inner);
        for session in list(self.sessions) {
            // SAFETY: the pointer is NULL, freed, or a session.
            unsafe { amdanet_session_free(session as *mut amdanet_session) };
        }
        for model in list(self.models) {
            // SAFETY: the pointer is NULL, freed, or a model.
            unsafe { amdanet_model_free(model as *mut amdanet_model) };
        }
        let lent = self.lent.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !lent.iter().all(|lent| lent.memory.is_whole(lent.length, lent.shift)) {
            fail("more was written than a buffer's length");
        }
    }
}

fn defaults(u: &mut Unstructured) -> Result<()> {
    let which = u.int_in_range(0..=2)?;
    let size = match which {
        0 => size_of::<amdanet_load_params>(u)?,
        1 => size_of::<amdanet_frame>(u)?,
        _ => size_of::<amdanet_session_params>(u)?,
    };
    let mut given = Given::empty(size);
    let no = u.ratio(1, 32)?;
    let at = if no { null_mut() } else { given.at::<c_void>() };
    // SAFETY: the pointer is NULL, or to as many bytes; a larger size than any structure's is refused.
    checked(unsafe {
        match which {
            0 => amdanet_load_params_init(at.cast(), size),
            1 => amdanet_frame_init(at.cast(), size),
            _ => amdanet_session_params_init(at.cast(), size),
        }
    });
    if !given.is_whole() {
        fail("more of a structure was written than there is");
    }
    Ok(())
}

fn last_error(u: &mut Unstructured) -> Result<()> {
    let length = u.int_in_range(0..=300)?;
    let mut memory = Memory::new(length, 0, 0);
    let no = u.ratio(1, 16)?;
    let at: *mut c_char = if no { null_mut() } else { memory.at(0).cast() };
    // SAFETY: the pointer is NULL, or so many bytes are there.
    unsafe { amdanet_last_error(at, length) };
    if !memory.is_whole(length, 0) {
        fail("more of a message was written than there is memory");
    }
    Ok(())
}

fn library(u: &mut Unstructured) -> Result<()> {
    let status = i32::arbitrary(u)?;
    if amdanet_status_name(status).is_null() || amdanet_build_info().is_null() {
        fail("a text is NULL");
    }
    let (_, _) = (amdanet_version(), amdanet_device_count());
    let callback: amdanet_log_callback = if bool::arbitrary(u)? { Some(heard) } else { None };
    let most = constant(u, 3)?;
    // SAFETY: the callback may be called at any time.
    checked(unsafe { amdanet_set_log(callback, null_mut(), most) });
    Ok(())
}
